// Package nsthread does something in another network namespace, on a thread that is in it for that long.
package nsthread
