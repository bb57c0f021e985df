package operation

// Prune forgets old operations as if it were now.
var Prune = (*Engine).prune

// KeepCount is how many operations that have ended are kept.
const KeepCount = keepCount
