// Package arch checks what the code as a whole promises: which package imports which, and what the
// public packages export.
package arch
