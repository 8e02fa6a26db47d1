//go:build !e2e

package intercept

import "time"

const churnTime = 4 * time.Second
