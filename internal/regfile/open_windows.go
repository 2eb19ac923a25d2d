package regfile

const nonblock = 0 // there are no FIFOs among the files
