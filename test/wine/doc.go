// Package winetest runs programs built for Windows under Wine, against libraries that stand in for
// those of the Host Compute Service (package standin). What is checked there is the real Windows
// build: how libraries are loaded, UTF-16, struct layouts, callbacks, error codes.
package winetest
