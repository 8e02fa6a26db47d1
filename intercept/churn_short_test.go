//go:build !e2e

package intercept

import "time"

const churnTime = 6 * time.Second
