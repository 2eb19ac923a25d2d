package main

import (
	"path/filepath"
	"slices"

	"github.com/stratavm/strata"
)

// lives returns the names of the containers of strata run.
func (c *completion) lives() (names []string) {
	dir, err := filepath.Abs(c.state())
	if err != nil {
		return nil
	}
	all, _ := (&strata.Runs{Dir: dir}).Containers().List() // see complete
	for _, r := range all {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}

// programs returns the containers in which exec can run a program.
func (c *completion) programs() []string {
	names := c.containers()
	if c.flags["vm"] == "" {
		names = append(names, c.lives()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
