package network

// Network is the network of a container.
type Network struct {
	Namespace  string // path of the network namespace
	ResolvConf string // path of the file to use instead of the system's /etc/resolv.conf
	Address    string // the container's first IP address, or empty
}

// Networks looks up the networks of containers.
type Networks interface {
	// Of returns the network of a container; ok is false if it has none.
	Of(container string) (n Network, ok bool)
}
