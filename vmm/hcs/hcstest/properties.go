package hcstest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// GetComputeSystemProperties implements hcs.API.
func (s *Service) GetComputeSystemProperties(handle hcs.Handle, query string) (
	properties, result string, hr hcs.HRESULT) {
	y, args := s.about(handle, map[string]any{"propertyQuery": parse(query)})
	result, hr = s.call("HcsGetComputeSystemProperties", y, args, func() (map[string]any, string, hcs.HRESULT) {
		if y == nil {
			return nil, "", invalidHandle
		}
		var q hcsschema.PropertyQuery
		if json.Unmarshal([]byte(query), &q) != nil {
			return nil, "", invalidJSON
		}
		properties = y.properties(slices.Contains(q.PropertyTypes, hcsschema.PropertyGuestConnection))
		return map[string]any{"properties": parse(properties)}, "", ok
	})
	return properties, result, hr
}

func (y *system) properties(connection bool) string {
	var p hcsschema.Properties
	osType := "Linux"
	if !y.linux() {
		osType = "Windows"
	}
	if connection {
		p.GuestConnectionInfo = &hcsschema.GuestConnectionInfo{
			SupportedSchemaVersions: []hcsschema.SchemaVersion{hcsschema.V21}, ProtocolVersion: 4,
			GuestDefinedCapabilities: json.RawMessage(y.guest.capabilities())}
	} else {
		p = hcsschema.Properties{Id: y.id, SystemType: "VirtualMachine", Owner: "", RuntimeOsType: osType,
			RuntimeId: GUID("vm:" + y.id), State: y.state, Stopped: y.state == hcsschema.StateStopped}
	}
	text, err := json.Marshal(p)
	if err != nil {
		return "{}"
	}
	return string(text)
}

// EnumerateComputeSystems implements hcs.API.
func (s *Service) EnumerateComputeSystems(query string) (systems, result string, hr hcs.HRESULT) {
	result, hr = s.call("HcsEnumerateComputeSystems", nil, map[string]any{"query": parse(query)},
		func() (map[string]any, string, hcs.HRESULT) {
			seen := map[string]string{}
			for _, y := range s.systems {
				seen[y.id] = y.properties(false)
			}
			var all []string
			for _, id := range slices.Sorted(maps.Keys(seen)) {
				all = append(all, seen[id])
			}
			systems = "[" + strings.Join(all, ",") + "]"
			return map[string]any{"systems": parse(systems)}, "", ok
		})
	return systems, result, hr
}

// GetServiceProperties implements hcs.API.
func (s *Service) GetServiceProperties(query string) (properties, result string, hr hcs.HRESULT) {
	result, hr = s.call("HcsGetServiceProperties", nil, map[string]any{"propertyQuery": parse(query)},
		func() (map[string]any, string, hcs.HRESULT) {
			text, err := json.Marshal(
				map[string]any{"Properties": []any{hcsschema.ProcessorTopology{LogicalProcessorCount: s.opts.Processors}}})
			if err != nil {
				return nil, "", fail
			}
			properties = string(text)
			return map[string]any{"properties": parse(properties)}, "", ok
		})
	return properties, result, hr
}
