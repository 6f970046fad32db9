"""Exit code 0 where a Ray cluster takes part in its work with this node: ``healthy.py HEAD:PORT [NODE_IP]``.

What ``ray health-check`` leaves out: that the head counts *this* node as alive. Needs the cluster's token.
"""

from __future__ import annotations

import socket
import sys

from ray._raylet import GcsClient  # type: ignore[attr-defined] # what `ray health-check` uses, too


def main() -> int:
    """See the module."""
    address, *rest = sys.argv[1:]
    node_ip = rest[0] if rest else _towards(address.rpartition(":")[0])
    nodes = GcsClient(address=address).get_all_node_info(timeout=5).values()
    alive = [node.node_manager_address for node in nodes if node.state == 0]  # GcsNodeInfo.ALIVE
    if node_ip not in alive:
        print(f"{address} knows no living node {node_ip}, but {', '.join(alive) or 'none'}", file=sys.stderr)
        return 1
    return 0


def _towards(host: str) -> str:
    """What the kernel would send from; ``[::1]`` is ``::1``."""
    family, kind, _, _, there = socket.getaddrinfo(host.strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)
        return str(probe.getsockname()[0])


if __name__ == "__main__":
    sys.exit(main())
