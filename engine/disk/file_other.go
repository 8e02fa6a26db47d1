//go:build !linux

package disk

import "errors"

func setDirect(int) error { return errors.ErrUnsupported }

func noReadAhead(int) {}

func dropCache(int, int64, int64) {}
