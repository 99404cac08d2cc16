package decode

import (
	"maps"
	"slices"
)

// presets are the tables of FHIR servers, by the names of these in the configuration.
var presets = map[string][]Table{
	hapiPreset: nil, // reads its tables itself
	// Aidbox: a table a type, and one of its earlier versions, both in its own format. What is
	// deleted goes from the one, and into the other with what it was.
	"aidbox": {{
		Name: "(?P<type>[a-z]+)_history", TypeColumn: "resource_type", ID: "id", Version: "txid", LastUpdated: "ts", Body: "resource", Deleted: "status",
		History: true, skipTypes: aidboxTypes, strip: aidboxMeta, adapt: fromAidbox,
	}, {
		Name: "(?P<type>[a-z]+)", TypeColumn: "resource_type", ID: "id", Version: "txid", LastUpdated: "ts", Body: "resource", Deleted: "status",
		skipTypes: aidboxTypes, strip: aidboxMeta, adapt: fromAidbox,
	}},
	// Medplum: a table a type, and one of its versions, which are only inserted.
	"medplum": {{
		Name: "(?P<type>[a-z]+)_History", ID: "id", LastUpdated: "lastUpdated", Body: "content",
		History: true, emptyDeletes: true, skipTypes: medplumTypes, strip: medplumMeta,
	}, {
		Name: "(?P<type>[a-z]+)", ID: "id", LastUpdated: "lastUpdated", Body: "content", Deleted: "deleted",
		emptyDeletes: true, skipTypes: medplumTypes, strip: medplumMeta,
	}},
	// LinuxForHealth's FHIR server: a table of versions a type, whose body is gzip and says id
	// and version.
	"lfh": {{
		Name: "(?P<type>[a-z]+)_resources", Version: "version_id", LastUpdated: "last_updated", Body: "data", Deleted: "is_deleted", History: true,
	}, {
		Name: "[a-z]+_logical_resources", Ignore: true,
	}},
	// Microsoft's FHIR server on SQL Server. The type is a number of its own; the body says it.
	"msfhir": {{
		Name: "Resource", ID: "ResourceId", Version: "Version", LastUpdated: "ResourceSurrogateId", Body: "RawResource", Deleted: "IsDeleted", Skip: "IsHistory",
		History: true, ticks: true,
	}},
	// MIRACUM's fhir-gateway on PostgreSQL.
	"miracum": {{
		Name: "resources", TypeColumn: "type", ID: "fhir_id", LastUpdated: "last_updated_at", Body: "data", Deleted: "is_deleted",
	}},
}

// aidboxMeta are the members of meta that Aidbox adds.
var aidboxMeta = []string{"createdAt"}

// aidboxTypes are resource types of Aidbox's own.
var aidboxTypes = []string{
	"AccessPolicy", "AidboxJob", "AidboxMigration", "AidboxProfile", "AidboxQuery", "AidboxSubscription", "AidboxTrigger", "App", "Attribute", "AuthConfig",
	"Client", "Concept", "Entity", "Grant", "IdentityProvider", "Lambda", "Mapping", "Module", "Notification", "NotificationTemplate", "Operation",
	"Registration", "Role", "SearchQuery", "Session", "TokenIntrospector", "User",
}

// medplumMeta are the members of meta that Medplum keeps for itself.
var medplumMeta = []string{"project", "author", "account", "accounts", "compartment", "onBehalfOf"}

// medplumTypes are resource types of Medplum's own.
var medplumTypes = []string{
	"AccessPolicy", "Agent", "AsyncJob", "Bot", "BulkDataExport", "ClientApplication", "DomainConfiguration", "JsonWebKey", "Login",
	"PasswordChangeRequest", "Project", "ProjectMembership", "SmartAppLaunch", "User", "UserConfiguration", "UserSecurityRequest",
}

// Presets lists the known presets of the format debezium.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }
