// Package archtest holds tests that keep the rules of this code base: which package may import which, and habits that no
// linter knows. Each rule says its reason. It has nothing for other packages to use.
package archtest
