//go:build !linux

package bench

import (
	"context"
	"errors"
)

func limits(context.Context, LimitConfig) ([]Limit, error) {
	return nil, errors.New("the limits are measured on Linux only")
}
