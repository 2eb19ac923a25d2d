// Package soak works Strata hard for a while: many commands at a time, commands that are killed at random
// moments, and a guest that is hostile. STRATA_SOAK says for how long each test works (as 10m; the
// default is short enough for every run of the tests), STRATA_SOAK_SEED repeats one run's choices.
package soak
