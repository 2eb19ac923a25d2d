package winetest

// copyCode is how the process of guests in these tests ends.
const copyCode = 7
