package network

// Network is what a container has of its network.
type Network struct {
	Namespace  string // the file of the namespace
	ResolvConf string // the file that counts as the machine's /etc/resolv.conf
	Address    string // the container's
}

// Networks knows the networks that were made for containers.
type Networks interface {
	// Of returns the network of a container; ok is false where it has none.
	Of(container string) (n Network, ok bool)
}
