package hcs

import (
	"fmt"

	"golang.org/x/sys/windows"

	"github.com/stratavm/strata/hcsschema"
)

// TimeZone returns the time zone of this computer.
func TimeZone() (hcsschema.TimeZoneInformation, error) {
	var tz windows.Timezoneinformation
	if _, err := windows.GetTimeZoneInformation(&tz); err != nil {
		return hcsschema.TimeZoneInformation{}, fmt.Errorf("time zone of this computer: %w", err)
	}
	date := func(t windows.Systemtime) *hcsschema.SystemTime {
		return &hcsschema.SystemTime{Year: t.Year, Month: t.Month, DayOfWeek: t.DayOfWeek, Day: t.Day,
			Hour: t.Hour, Minute: t.Minute, Second: t.Second, Milliseconds: t.Milliseconds}
	}
	return hcsschema.TimeZoneInformation{
		Bias:         tz.Bias,
		StandardName: windows.UTF16ToString(tz.StandardName[:]),
		StandardDate: date(tz.StandardDate), StandardBias: tz.StandardBias,
		DaylightName: windows.UTF16ToString(tz.DaylightName[:]),
		DaylightDate: date(tz.DaylightDate), DaylightBias: tz.DaylightBias,
	}, nil
}
