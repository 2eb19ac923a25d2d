// Package userns tells about the user namespace that this process is in. On systems other than Linux
// there is none.
package userns

import (
	"fmt"
	"os"
	"strings"
)

// initial is the link of the first user namespace: its number is fixed in the kernel.
const initial = "user:[4026531837]"

// Inside reports whether this process is in another user namespace than the first. Its root then has
// power over what belongs to the namespace, and none over the system.
func Inside() bool {
	ns, err := os.Readlink("/proc/self/ns/user")
	return err == nil && ns != initial
}

// IDs are the users and groups of a user namespace.
type IDs struct {
	Text string // both maps; two namespaces in which a file has the same owner have the same text
	One  bool   // one user and one group: nobody else could own a file
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
