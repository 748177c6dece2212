#!/bin/sh
# Print the newest Python that the project supports and that can make a virtual environment: of the PATH, else pyenv's.
# With an argument, look at that one alone. Exit code 2, with one line, if there is none.
supported="3.13 3.12 3.11"

answer() { # the path of $1, if it is a Python of one of the versions in $2 and has the modules needed
  "$1" -c 'import ensurepip, sqlite3, ssl, sys, venv
if "%d.%d" % sys.version_info[:2] not in sys.argv[1:]: sys.exit(1)
print(sys.executable)' $2 2>/dev/null
}

if [ -n "$1" ]; then
  answer "$1" "$supported" && exit 0
  echo "make: '$1' is no Python ($supported) with venv" >&2
  exit 2
fi
for version in $supported; do
  for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python python3; do
    answer "$python" "$version" && exit 0
  done
done
echo "make: no Python ($supported) with venv was found: install one, or name it: make PYTHON=/path/to/python" >&2
exit 2
