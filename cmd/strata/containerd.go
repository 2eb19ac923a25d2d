package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"
)

// dropIn is a drop-in configuration for containerd 2: it adds the runtime to CRI, and a writable disk to the erofs
// snapshotter.
const dropIn = `version = 3

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata]
runtime_type = "io.containerd.strata.v1"
privileged_without_host_devices = true
pod_annotations = ["io.stratavm.*"]

# What VMs are like, for all pods. The values are examples; docs/containerd.md says what each of them does. By ctr:
# --runtime-config-path FILE with such lines. ConfigPath = "FILE" here takes them from a file, and no others are heeded.
#[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.strata.options]
#memory = 1024
#cpus = 2
#template = true
#accel = "kvm"
#kernel = "/boot/vmlinuz-6.1.0"
#kernel_release = "6.1.0"
#modules = "/lib/modules"
#init = "/usr/local/bin/strata-init"
#debug = true

[plugins."io.containerd.snapshotter.v1.erofs"]
default_size = "10GiB"
`

// runtimeClass is the runtime's RuntimeClass for Kubernetes. Its overhead is that of QEMU and the guest.
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
			"what a node lacks for it. Its VMs are seen by strata --state-dir /run/strata/shim/NAMESPACE vm ls.\n" +
			"What VMs are like is said by options of the runtime, which the file of config has as comments.",
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
