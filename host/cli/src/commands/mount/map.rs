//! `map` and `unmap`: an image as a block device.
