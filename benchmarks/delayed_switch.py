"""A switch in user space that delays every frame: for kernels without netem.

    python delayed_switch.py MILLISECONDS PORT PORT ...

The ports are interfaces of this namespace that are in no bridge. Frames come with their offload header, so that the
kernel's large segments pass unchanged. It prints "ready" and runs until it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys
import time
from collections import deque

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE, SO_SNDBUFFORCE = 263, 15, 23, 33, 32
ETH_P_ALL, PR_SET_TIMERSLACK = 3, 29
HEADER = 10  # struct virtio_net_hdr
LARGEST = 1 << 16 | 1 << 10  # a segment of 64 KiB and its headers


def port(name: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, struct.pack("i", 1))
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, struct.pack("i", 1))
    end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
    end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)
    end.bind((name, ETH_P_ALL))
    end.setblocking(False)
    return end


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)  # otherwise a sleep may be 50 µs too long
    late, ports = float(sys.argv[1]) / 1000, [port(name) for name in sys.argv[2:]]
    by_address: dict[bytes, socket.socket] = {}
    waiting: deque[tuple[float, memoryview, int, list[socket.socket]]] = deque()
    spare: list[memoryview] = []  # reused: new ones would cost a page fault per 4 KiB
    print("ready", flush=True)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(ports, [], [], left)
        for end in ready:
            frame = spare.pop() if spare else memoryview(bytearray(LARGEST))
            try:
                size = end.recv_into(frame)
            except OSError:
                spare.append(frame)
                continue
            addresses = bytes(frame[HEADER : HEADER + 12])
            by_address[addresses[6:]] = end
            known = by_address.get(addresses[:6])
            ends = [known] if known else [other for other in ports if other is not end]
            waiting.append((time.monotonic() + late, frame, size, ends))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, frame, size, ends = waiting.popleft()
            for end in ends:
                with contextlib.suppress(OSError):  # a full queue drops frames, as in a switch
                    end.send(frame[:size])
            spare.append(frame)


if __name__ == "__main__":
    main()
