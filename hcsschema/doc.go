// Package hcsschema holds the documents that the Host Compute Service and the agents inside
// utility VMs exchange: plain Go structs whose JSON is what goes over the wire.
//
// Members with zero values are left out of every document, as the service expects; LUN 0 and
// controller 0 therefore never appear. Member names are spelled as the service spells them.
package hcsschema
