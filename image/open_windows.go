package image

// nonblock is for FIFOs, which folders on Windows do not hold.
const nonblock = 0
