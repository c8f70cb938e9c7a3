#!/bin/sh
# First process of a node: runs in network, mount, PID and UTS namespaces of its own, makes the paths that a real node has,
# and starts containerd, kubelet and kube-proxy. Killing it kills the node with all its pods.
#
# Environment: NODE (name), STATE (the cluster's folder), BIN (built binaries), CNI_BIN (Debian's plugins),
# NODE_IPS, CLUSTER_CIDR (comma-separated), PROXY_MODE (nftables or iptables).
set -eu
own=$STATE/$NODE

# A fresh /proc and /sys show this node's processes and devices; cgroups stay the machine's, they are not namespaced here.
mkdir -p "$own/cgroup"
mount --rbind /sys/fs/cgroup "$own/cgroup"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount --rbind "$own/cgroup" /sys/fs/cgroup
umount -R -l "$own/cgroup"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
for pair in kubelet:/var/lib/kubelet containerd:/var/lib/containerd log:/var/log cni:/etc/cni/net.d ipam:/var/lib/cni bulkhead:/var/lib/bulkhead; do
  mkdir -p "$own/${pair%%:*}" "${pair#*:}"
  mount --bind "$own/${pair%%:*}" "${pair#*:}"
done
# The node's own copy: an agent installs its plugin here.
mkdir -p "$own/cni-bin" /opt/cni/bin
cp -n "$CNI_BIN"/* "$own/cni-bin/"
mount --bind "$own/cni-bin" /opt/cni/bin
mkdir -p /var/log/pods /var/log/containers
# Kubelet refuses `mountPropagation: Bidirectional` of a mount that is not shared.
mount --make-rshared /
hostname "$NODE"

# Same-node traffic to a Service must come back through the rules that rewrote it.
for family in iptables ip6tables; do
  echo 1 > /proc/sys/net/bridge/bridge-nf-call-$family || echo "no br_netfilter: same-node Services will not work"
done

export PATH="$BIN:$PATH"
containerd -c "$own/containerd.toml" > "$own/containerd.log" 2>&1 &
tries=0
until ctr version > /dev/null 2>&1; do
  tries=$((tries + 1))
  [ $tries -lt 300 ] || { echo "containerd does not answer; see $own/containerd.log"; exit 1; }
  sleep 0.1
done
for image in "$BIN"/../images/*.tar; do
  ctr -n k8s.io images import --snapshotter overlayfs "$image"
done
kube-testbed kubelet --config="$own/kubelet.yaml" --kubeconfig="$STATE/pki/kubelet-$NODE.kubeconfig" \
  --hostname-override="$NODE" --node-ip="$NODE_IPS" --v=2 > "$own/kubelet.log" 2>&1 &
# The machine's limits of connection tracking are not the node's to change (the zeros).
kube-testbed kube-proxy --kubeconfig="$STATE/pki/kube-proxy.kubeconfig" --hostname-override="$NODE" \
  --proxy-mode="$PROXY_MODE" --cluster-cidr="$CLUSTER_CIDR" --healthz-bind-address=127.0.0.1 --oom-score-adj=0 \
  --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
  --v=2 > "$own/kube-proxy.log" 2>&1 &
echo "node is up"
# Waits for all children and reaps what pods leave behind.
while :; do wait; sleep 1; done
