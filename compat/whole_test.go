//go:build e2e

package compat_test

const everything = true
