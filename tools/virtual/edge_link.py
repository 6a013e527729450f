#!/usr/bin/env python3
"""A bad Wi-Fi link between two network namespaces, in user space (no tc netem needed).

It owns one TUN interface in each namespace and carries IP packets between them with a
bandwidth, a delay with jitter, random or bursty loss and a bounded queue, from a seeded
generator, so a run can be repeated. A relay on 127.0.0.1 lets programs outside the
namespaces reach the device's SSH port through the link.

  edge_link.py RUN_DIR LAB_NS DEVICE_NS LAB_IP DEVICE_IP PORT

RUN_DIR/link.json holds the settings (SIGHUP reads it again); RUN_DIR/link_stats.json gets
the counters twice a second. Standard library only; Linux, root.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

DEFAULTS = dict(
    rate_mbit=0.0,  # 0: no limit
    delay_ms=0.0,  # one way
    jitter_ms=0.0,  # standard deviation, one way; packets keep their order
    loss_pct=0.0,  # mean share of packets lost, each way
    burst=1.0,  # mean packets lost in a row (1: independent losses)
    queue_kb=256.0,  # bytes that may wait for the bandwidth limit, then tail drop
    down=False,  # true: nothing passes
    seed=1,
)
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
MTU = 1500


def ip(*args):
    subprocess.run(["ip", *args], check=True)


def open_tun(name, netns, address, peer):
    """A TUN interface moved into netns; its file descriptor stays here."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", name, "netns", netns)
    ip("-n", netns, "link", "set", name, "name", "wlan0")
    ip("-n", netns, "addr", "add", address, "peer", peer, "dev", "wlan0")
    ip("-n", netns, "link", "set", "wlan0", "mtu", str(MTU), "up")
    ip("-n", netns, "link", "set", "lo", "up")
    return fd


class Direction:
    """One way of the link: packets in, the same packets out later, or never."""

    def __init__(self, out_fd, seed):
        self.out_fd, self.rng = out_fd, random.Random(seed)
        self.heap, self.seq = [], 0
        self.free_at = self.last_due = 0.0  # bandwidth free again; last delivery promised
        self.bad = False  # inside a burst of losses
        self.sent = self.bytes = self.lost = self.dropped = 0

    def lose(self, s):
        p, burst = s["loss_pct"] / 100.0, max(1.0, s["burst"])
        if p <= 0:
            return False
        if p >= 1:
            return True
        if burst <= 1:
            return self.rng.random() < p
        # two-state chain: mean bad run = burst packets, share of bad packets = p
        leave, enter = 1 / burst, p / (burst * (1 - p))
        self.bad = self.rng.random() >= leave if self.bad else self.rng.random() < enter
        return self.bad

    def accept(self, packet, now, s):
        if s["down"] or self.lose(s):
            self.lost += 1
            return
        done = now
        if s["rate_mbit"] > 0:
            bytes_per_s = s["rate_mbit"] * 125000.0
            if (self.free_at - now) * bytes_per_s > s["queue_kb"] * 1024:
                self.dropped += 1
                return
            done = self.free_at = max(now, self.free_at) + len(packet) / bytes_per_s
        wait = s["delay_ms"] + (self.rng.gauss(0, s["jitter_ms"]) if s["jitter_ms"] else 0)
        due = self.last_due = max(self.last_due, done + max(0.0, wait) / 1e3)
        self.seq += 1
        heapq.heappush(self.heap, (due, self.seq, packet))

    def deliver(self, now):
        """Writes what is due; seconds until the next packet, or None."""
        while self.heap and self.heap[0][0] <= now:
            packet = heapq.heappop(self.heap)[2]
            try:
                os.write(self.out_fd, packet)
                self.sent += 1
                self.bytes += len(packet)
            except OSError:  # interface down or its queue full
                self.dropped += 1
        return self.heap[0][0] - now if self.heap else None


def relay(port, target, lab_ns):
    """127.0.0.1:port here  <->  target, connected from inside lab_ns."""
    server = socket.create_server(("127.0.0.1", port))

    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        for s, how in ((b, socket.SHUT_WR), (a, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                s.shutdown(how)

    def serve(client):
        with client:
            try:
                with socket.create_connection(target, timeout=60) as far:
                    far.settimeout(None)
                    for s in (client, far):
                        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    t = threading.Thread(target=pump, args=(far, client), daemon=True)
                    t.start()
                    pump(client, far)
                    t.join()
            except OSError:
                pass

    def loop():
        # setns moves this thread only; threads started from it inherit the namespace
        fd = os.open("/run/netns/" + lab_ns, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        while True:
            client, _ = server.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def main():
    run, lab, dev, lab_ip, dev_ip, port = sys.argv[1:]
    conf, stats = os.path.join(run, "link.json"), os.path.join(run, "link_stats.json")
    settings = dict(DEFAULTS)

    def load(*_):
        try:
            with open(conf) as f:
                settings.update(json.load(f))
        except (OSError, ValueError) as e:
            sys.stderr.write(f"edge_link: settings kept: {e}\n")

    load()
    pid = os.getpid()
    a = open_tun(f"edl{pid}", lab, lab_ip, dev_ip)
    b = open_tun(f"edd{pid}", dev, dev_ip, lab_ip)
    up, down = Direction(b, settings["seed"]), Direction(a, settings["seed"] + 1)
    reload_now, stop = [False], [False]
    signal.signal(signal.SIGHUP, lambda *_: reload_now.__setitem__(0, True))
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: stop.__setitem__(0, True))
    relay(int(port), (dev_ip, 22), lab)

    def save():
        with open(stats + ".new", "w") as f:
            json.dump(
                {
                    n: {k: getattr(d, k) for k in ("sent", "bytes", "lost", "dropped")}
                    for n, d in (("to_device", up), ("from_device", down))
                },
                f,
            )
        os.replace(stats + ".new", stats)

    save()
    with open(os.path.join(run, "link.ready"), "w") as f:
        f.write(f"{pid}\n")
    saved = time.monotonic()
    while not stop[0]:
        now = time.monotonic()
        waits = [w for w in (up.deliver(now), down.deliver(now), 0.25) if w is not None]
        ready, _, _ = select.select([a, b], [], [], max(0.0, min(waits)))
        if reload_now[0]:
            reload_now[0] = False
            load()
        now = time.monotonic()
        for fd, way in ((a, up), (b, down)):
            if fd in ready:
                for _ in range(64):
                    try:
                        way.accept(os.read(fd, 65536), now, settings)
                    except OSError:
                        break
        if now - saved > 0.5:
            saved = now
            save()
    save()


if __name__ == "__main__":
    main()
