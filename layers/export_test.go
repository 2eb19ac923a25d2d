package layers

// WithNames is r with other answers to what is at a path of the host. It changes nothing about what the
// folders of layers record.
func (r Request) WithNames(n names) Request { r.names = n; return r }

// WithNames is mt with other answers to what is at a path of the host.
func (mt Mounter) WithNames(n names) Mounter { mt.names = n; return mt }
