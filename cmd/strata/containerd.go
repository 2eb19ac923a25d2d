package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// dropIn makes the runtime known to containerd 2, for Kubernetes, and gives its erofs snapshotter a disk to write to.
const dropIn = `version = 3

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata]
runtime_type = "io.containerd.strata.v1"
privileged_without_host_devices = true
pod_annotations = ["io.stratavm.*"]

[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "10GiB"
`

// runtimeClass makes the runtime known to Kubernetes. The overhead is what QEMU and the guest take besides a pod.
const runtimeClass = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: strata
handler: strata
overhead:
  podFixed:
    memory: 512Mi
    cpu: 250m
`

func containerdCommands(e *env) []*cli.Command {
	return []*cli.Command{{
		Name: "containerd", Usage: "settings for containerd and Kubernetes",
		Description: "containerd runs containers in VMs by containerd-shim-strata-v1. strata doctor --containerd says\n" +
			"what a node lacks for it. Its VMs are seen by strata --state-dir /run/strata/shim/NAMESPACE vm ls.",
		Commands: []*cli.Command{{
			Name: "config", Usage: "print a file for /etc/containerd/conf.d, or with --runtime-class one for kubectl apply",
			Description: examples("strata containerd config >/etc/containerd/conf.d/strata.toml",
				"strata containerd config --runtime-class | kubectl apply -f -"),
			Flags: []cli.Flag{&cli.BoolFlag{Name: "runtime-class", Usage: "print a RuntimeClass of Kubernetes"}},
			Action: func(_ context.Context, cmd *cli.Command) error {
				if cmd.Args().Present() {
					return usage(cmd, "config takes no arguments")
				}
				text := dropIn
				if cmd.Bool("runtime-class") {
					text = runtimeClass
				}
				_, err := fmt.Fprint(e.stdout, text)
				return err
			},
		}},
	}}
}
