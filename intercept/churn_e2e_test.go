//go:build e2e

package intercept

import "time"

const churnTime = 40 * time.Second
