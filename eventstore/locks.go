package eventstore

// Advisory locks of the project's database, all in one place. Goose has one of
// its own for migrations.
//
//	6577801  ensure_usage_parts (migrations/0001_log.sql): one process makes partitions
//	6577802  projections.Rebuild: one rebuild of a projection at a time
//	6577803  firstkey.Once: one process looks whether an organization has a key, and makes one
//	6577804  erase_organization (migrations/0006_erasure.sql): with hashtext(organization), shared by those who make a data key
