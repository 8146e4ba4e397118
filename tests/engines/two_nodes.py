"""A Ray cluster of two nodes with a processor each, on this machine: prints its address, then does what stdin says.

"kill" ends the second node at once, the end of stdin all of it. In a process of its own, since JAX's threads do not
survive the forks that this takes.
"""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
    cluster.shutdown()
