//go:build e2e

package intercept

import "time"

const churnTime = 5 * time.Minute
