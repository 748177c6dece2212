"""Package definition; Beam ships the package to its workers with ``--setup_file ./setup.py``."""

from pathlib import Path

from setuptools import find_packages, setup

PYTHONS = ["3.11", "3.12", "3.13"]
# What serving.Client imports; installed without any extra.
CLIENT = ["numpy>=1.26", "protobuf>=6.31", "grpcio>=1.60"]
COMMANDS = ["pydantic>=2.7", "PyYAML>=6", "typer>=0.29", "rich>=13"]
TENSORFLOW = [*COMMANDS, "tensorflow>=2.21,<2.22", "keras>=3.15,<3.16", "google-crc32c>=1.5"]
SERVING = [*COMMANDS, "tensorflow-serving-api>=2.21,<2.22", "grpcio-health-checking>=1.60", "h11>=0.16,<0.17"]
BEAM = [*TENSORFLOW, "apache-beam>=2.77,<2.78"]
# What Horovod imports; scripts/build_horovod.py builds its wheel for the installed TensorFlow.
HOROVOD = ["PyYAML>=6", "cloudpickle", "packaging", "psutil"]
FRAMES = [*COMMANDS, "pandas>=2.2", "pyarrow>=15"]
DEV = [
    *FRAMES,
    "polars",
    "nbclient",
    "ipykernel",
    "pytest",
    "pytest-cov",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "types-PyYAML",
    "scikit-learn",
    "grpcio-tools",
    "boto3",
    *("moto[s3]", "flask", "flask-cors"),  # an s3:// for tests
    "mkdocs-material",
]

setup(
    name="afm-ctr",
    version="0.1.0",
    description="Attentional factorization machines for click-through rate: raw logs to a scored request",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    keywords="click-through rate, factorization machines, attention, recommender systems",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["afm_ctr", "afm_ctr.*", "beam_jobs", "beam_jobs.*", "serving", "serving.*"]),
    package_data={
        "serving": ["protos/*.proto"],
        "afm_ctr": ["py.typed", "*.jinja"],
        "afm_ctr.native": ["*.cc", "*.cu", "*.h"],
    },
    install_requires=CLIENT,
    extras_require={
        "client": [],
        "cli": COMMANDS,
        "train": [*TENSORFLOW, "Jinja2>=3.1", "matplotlib>=3.8", "tensorboard>=2.20"],
        "beam": BEAM,
        "serving": SERVING,
        "frames": FRAMES,
        "horovod": HOROVOD,
        "dev": DEV,
        "gpu-dev": ["nvidia-cuda-nvrtc>=13"],  # compiles the GPU's kernels in the tests, on any machine
    },
    entry_points={
        "console_scripts": ["afm-ctr = afm_ctr.cli:main"],
        "afm_ctr.models": [
            "afm = afm_ctr.models.afm:AFM",
            "deep_afm = afm_ctr.models.deep_afm:DeepAFM",
            "fm = afm_ctr.models.fm:FM",
            "lr = afm_ctr.models.lr:LR",
        ],
    },
)
