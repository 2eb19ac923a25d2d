// Package nsthread runs functions in another network namespace, on a thread that enters it temporarily.
package nsthread
