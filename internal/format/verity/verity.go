// Package verity appends dm-verity hash trees to file systems, in the layout that Microsoft's Linux
// guest and veritysetup read: a super block of 4 KiB after the data, then the tree, root level first.
// The salt is zero and the UUID is taken from the root digest, so that the same data gives the same bytes.
//
// github.com/containerd/go-dmverity reads and writes the same format, but only through the paths of
// files and block devices; here the tree goes through a plain writer, and both cores hash.
package verity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// BlockSize is the size of data and hash blocks in bytes.
	BlockSize = 4096

	digestSize = sha256.Size
	saltSize   = 32
	perBlock   = BlockSize / digestSize
	signature  = "verity\x00\x00"
	algorithm  = "sha256"
	chunk      = 256 // blocks that a worker hashes at a time
)

// Info is what a guest needs to check the data.
type Info struct {
	DataBytes  int64  `json:"dataBytes"`  // size of the protected data; the super block follows it
	RootDigest string `json:"rootDigest"` // lower-case hex
	Salt       string `json:"salt"`       // lower-case hex
	Algorithm  string `json:"algorithm"`  // always sha256
	TreeBytes  int64  `json:"treeBytes"`  // super block and tree
}

// ErrMismatch: the data does not match the tree, or one of them is damaged.
var ErrMismatch = errors.New("the data does not match its dm-verity hash tree")

var salt [saltSize]byte

// levels returns the number of blocks of each level of the tree, the lowest first.
func levels(dataBlocks int64) []int64 {
	var out []int64
	for n := dataBlocks; ; {
		n = (n + perBlock - 1) / perBlock
		out = append(out, n)
		if n == 1 {
			return out
		}
	}
}

// Append hashes the first size bytes of rw, a multiple of 4096, and writes super block and tree at
// offset size.
func Append(ctx context.Context, rw interface {
	io.ReaderAt
	io.WriterAt
}, size int64) (Info, error) {
	if size <= 0 || size%BlockSize != 0 {
		return Info{}, fmt.Errorf("verity: %d bytes of data: a positive multiple of %d is needed", size, BlockSize)
	}
	blocks := levels(size / BlockSize)
	// The root level comes first: find where each one begins.
	at := make([]int64, len(blocks))
	end := size + BlockSize
	for i := len(blocks) - 1; i >= 0; i-- {
		at[i] = end
		end += blocks[i] * BlockSize
	}
	from, n := int64(0), size/BlockSize
	for i := range blocks {
		if err := hashLevel(ctx, rw, from, n, at[i]); err != nil {
			return Info{}, fmt.Errorf("verity: %w", err)
		}
		from, n = at[i], blocks[i]
	}
	root := make([]byte, BlockSize)
	if _, err := rw.ReadAt(root, at[len(at)-1]); err != nil {
		return Info{}, fmt.Errorf("verity: read the root block: %w", err)
	}
	digest := hashBlock(root)
	info := Info{DataBytes: size, RootDigest: hex.EncodeToString(digest[:]), Salt: hex.EncodeToString(salt[:]),
		Algorithm: algorithm, TreeBytes: end - size}
	if _, err := rw.WriteAt(superBlock(uint64(size/BlockSize), digest), size); err != nil {
		return Info{}, fmt.Errorf("verity: write the super block: %w", err)
	}
	return info, nil
}

// hashLevel writes the digests of n blocks from offset from on to offset to, padded to whole blocks.
func hashLevel(ctx context.Context, rw interface {
	io.ReaderAt
	io.WriterAt
}, from, n, to int64) error {
	buffers := sync.Pool{New: func() any { b := make([]byte, chunk*BlockSize); return &b }}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for first := int64(0); first < n; first += chunk {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			count := min(n-first, chunk)
			buffer := buffers.Get().(*[]byte)
			defer buffers.Put(buffer)
			data := (*buffer)[:count*BlockSize]
			if k, err := rw.ReadAt(data, from+first*BlockSize); k < len(data) {
				return fmt.Errorf("read %d bytes at %d: %w", len(data), from+first*BlockSize, err)
			}
			out := make([]byte, (count+perBlock-1)/perBlock*BlockSize)
			for i := range count {
				d := hashBlock(data[i*BlockSize:][:BlockSize])
				copy(out[i*digestSize:], d[:])
			}
			_, err := rw.WriteAt(out, to+first*digestSize)
			return err
		})
	}
	return g.Wait()
}

func hashBlock(b []byte) (out [digestSize]byte) {
	h := sha256.New()
	h.Write(salt[:])
	h.Write(b)
	h.Sum(out[:0])
	return out
}

func superBlock(dataBlocks uint64, root [digestSize]byte) []byte {
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	copy(b, signature)
	le.PutUint32(b[8:], 1)  // version
	le.PutUint32(b[12:], 1) // the usual kind of hash: salt first
	uuid := root[:16]
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	copy(b[16:], uuid)
	copy(b[32:], algorithm)
	le.PutUint32(b[64:], BlockSize)
	le.PutUint32(b[68:], BlockSize)
	le.PutUint64(b[72:], dataBlocks)
	le.PutUint16(b[80:], saltSize)
	copy(b[88:], salt[:])
	return b
}

// Begins reports whether the signature of a super block follows size bytes of data.
func Begins(r io.ReaderAt, size int64) bool {
	b := make([]byte, len(signature))
	_, err := r.ReadAt(b, size)
	return (err == nil || errors.Is(err, io.EOF)) && string(b) == signature
}

// Read returns the Info of the tree that follows size bytes of data. It reads only the super block and the root block;
// see [Check] for verifying the data.
func Read(r io.ReaderAt, size int64) (Info, error) {
	if size <= 0 || size%BlockSize != 0 {
		return Info{}, fmt.Errorf("verity: %d bytes of data: a positive multiple of %d is needed", size, BlockSize)
	}
	b := make([]byte, 2*BlockSize)
	if n, err := r.ReadAt(b, size); n < len(b) {
		return Info{}, fmt.Errorf("verity: no tree after %d bytes: %w", size, err)
	}
	le := binary.LittleEndian
	switch {
	case string(b[:len(signature)]) != signature:
		return Info{}, fmt.Errorf("verity: no super block after %d bytes of data", size)
	case le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != 1 || le.Uint32(b[64:]) != BlockSize ||
		le.Uint32(b[68:]) != BlockSize ||
		string(b[32:32+len(algorithm)+1]) != algorithm+"\x00":
		return Info{}, errors.New("verity: only version 1 with sha256 and blocks of 4096 bytes is known")
	case le.Uint64(b[72:]) != uint64(size/BlockSize):
		return Info{}, fmt.Errorf("verity: the super block is for %d blocks, the data has %d: %w",
			le.Uint64(b[72:]), size/BlockSize, ErrMismatch)
	case le.Uint16(b[80:]) > 256:
		return Info{}, fmt.Errorf("verity: a salt of %d bytes", le.Uint16(b[80:]))
	}
	s := b[88 : 88+le.Uint16(b[80:])]
	h := sha256.New()
	h.Write(s)
	h.Write(b[BlockSize:])
	tree := int64(BlockSize)
	for _, n := range levels(size / BlockSize) {
		tree += n * BlockSize
	}
	return Info{DataBytes: size, RootDigest: hex.EncodeToString(h.Sum(nil)), Salt: hex.EncodeToString(s),
		Algorithm: algorithm, TreeBytes: tree}, nil
}

// Check verifies all data against the tree that follows it and against want. If they do not match, the error matches
// ErrMismatch.
func Check(ctx context.Context, r io.ReaderAt, want Info) error {
	info, err := Read(r, want.DataBytes)
	if err != nil {
		return err
	}
	if info != want {
		return fmt.Errorf("verity: the root digest is %s, want %s: %w", info.RootDigest, want.RootDigest, ErrMismatch)
	}
	if info.Salt != hex.EncodeToString(salt[:]) {
		return fmt.Errorf("verity: the tree has the salt %s: only the zero salt can be checked here", info.Salt)
	}
	blocks := levels(want.DataBytes / BlockSize)
	below := want.DataBytes + want.TreeBytes // end of the level that is checked
	for i, n := range blocks {
		count, from := want.DataBytes/BlockSize, int64(0)
		if i > 0 {
			count, from = blocks[i-1], below
		}
		below -= n * BlockSize
		if err := checkLevel(ctx, r, from, count, below); err != nil {
			return err
		}
	}
	return nil
}

func checkLevel(ctx context.Context, r io.ReaderAt, from, n, digests int64) error {
	data, tree := make([]byte, perBlock*BlockSize), make([]byte, BlockSize)
	for first := int64(0); first < n; first += perBlock {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		count := min(n-first, perBlock)
		if k, err := r.ReadAt(data[:count*BlockSize], from+first*BlockSize); int64(k) < count*BlockSize {
			return fmt.Errorf("verity: read data: %w", err)
		}
		if k, err := r.ReadAt(tree, digests+first*digestSize); k < len(tree) {
			return fmt.Errorf("verity: read the tree: %w", err)
		}
		for i := range count {
			if d := hashBlock(data[i*BlockSize:][:BlockSize]); string(d[:]) != string(tree[i*digestSize:][:digestSize]) {
				return fmt.Errorf("verity: the block at %d differs from its digest: %w", from+(first+i)*BlockSize, ErrMismatch)
			}
		}
	}
	return nil
}
