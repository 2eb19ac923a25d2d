package hcsschema

// TimeZoneInformation is a time zone as a Windows guest is told it. Biases are in minutes, to be added to
// local time for UTC. A date without a year says when in each year standard or daylight time begins: on
// the Day-th DayOfWeek of the month.
type TimeZoneInformation struct {
	Bias         int32       `json:",omitempty"`
	StandardName string      `json:",omitempty"`
	StandardDate *SystemTime `json:",omitempty"`
	StandardBias int32       `json:",omitempty"`
	DaylightName string      `json:",omitempty"`
	DaylightDate *SystemTime `json:",omitempty"`
	DaylightBias int32       `json:",omitempty"`
}

// SystemTime is a date and a time of Windows.
type SystemTime struct {
	Year         uint16 `json:",omitempty"`
	Month        uint16 `json:",omitempty"`
	DayOfWeek    uint16 `json:",omitempty"`
	Day          uint16 `json:",omitempty"`
	Hour         uint16 `json:",omitempty"`
	Minute       uint16 `json:",omitempty"`
	Second       uint16 `json:",omitempty"`
	Milliseconds uint16 `json:",omitempty"`
}

// UTC is the time zone of guests that do not inherit that of their host.
func UTC() TimeZoneInformation {
	const name = "Coordinated Universal Time"
	return TimeZoneInformation{StandardName: name, StandardDate: &SystemTime{},
		DaylightName: name, DaylightDate: &SystemTime{}}
}
