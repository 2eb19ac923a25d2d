// Package userns examines the user namespace of this process. On systems other than Linux there is none.
package userns

import (
	"fmt"
	"os"
	"strings"
)

// initial is the link of the initial user namespace, whose inode number is fixed in the kernel.
const initial = "user:[4026531837]"

// Inside reports whether this process is in another user namespace than the initial one. Root then has privileges only
// over resources of the namespace.
func Inside() bool {
	ns, err := os.Readlink("/proc/self/ns/user")
	return err == nil && ns != initial
}

// IDs are the user and group mappings of a user namespace.
type IDs struct {
	Text string // both mappings; namespaces with equal text map owners of files equally
	One  bool   // only one user and one group are mapped
}

// Current returns the ids of the namespace that this process is in.
func Current() (IDs, error) {
	out := IDs{One: true}
	for _, kind := range []string{"uid", "gid"} {
		b, err := os.ReadFile("/proc/self/" + kind + "_map")
		if err != nil {
			return IDs{}, fmt.Errorf("ids of the user namespace: %w", err)
		}
		fields := strings.Fields(string(b))
		out.Text += kind + " " + strings.Join(fields, " ") + "\n"
		out.One = out.One && len(fields) == 3 && fields[2] == "1"
	}
	return out, nil
}
