-- Tables shaped like those of FHIR servers, and functions that write them as these
-- servers do: in their order of rows, one transaction a call. The columns are those
-- that say what a resource is.

-- HAPI's JPA server, 8.8.

create table hfj_resource (
  res_id bigint primary key, res_type varchar(40) not null, fhir_id varchar(64), res_ver bigint not null, has_tags boolean not null,
  res_version varchar(7), res_published timestamp(6) not null, res_updated timestamp(6) not null, res_deleted_at timestamp(6), hash_sha256 varchar(64),
  unique (res_type, fhir_id)
);
create table hfj_res_ver (
  pid bigint primary key, res_id bigint not null references hfj_resource, res_ver bigint not null, res_type varchar(40) not null,
  res_encoding varchar(5) not null, res_text oid, res_text_vc text, has_tags boolean not null, res_version varchar(7),
  res_published timestamp(6) not null, res_updated timestamp(6) not null, res_deleted_at timestamp(6),
  source_uri varchar(768), request_id varchar(16), unique (res_id, res_ver)
);
alter table hfj_res_ver alter res_text_vc set storage external;
create table hfj_tag_def (
  tag_id bigint primary key, tag_type integer not null, tag_system varchar(200), tag_code varchar(200), tag_display varchar(200),
  tag_version varchar(30), tag_user_selected boolean, unique (tag_type, tag_code, tag_system)
);
create table hfj_res_tag (
  pid bigint primary key, tag_id bigint references hfj_tag_def, res_id bigint references hfj_resource, res_type varchar(40) not null
);
create table hfj_history_tag (
  pid bigint primary key, tag_id bigint references hfj_tag_def, res_ver_pid bigint not null references hfj_res_ver, res_id bigint not null, res_type varchar(40) not null
);
create sequence hapi_numbers start 1000;

-- A tag is kind|system|code|display; kinds are 0 tag, 1 profile, 2 security.
create function hapi_tag_def(tag text) returns bigint language plpgsql as $$
declare
  part text[] := string_to_array(tag, '|');
  found bigint;
begin
  select tag_id into found from hfj_tag_def where tag_type = part[1]::int and tag_code = part[3] and tag_system is not distinct from nullif(part[2], '');
  if found is null then
    found := nextval('hapi_numbers');
    insert into hfj_tag_def (tag_id, tag_type, tag_system, tag_code, tag_display, tag_user_selected)
    values (found, part[1]::int, nullif(part[2], ''), part[3], nullif(part[4], ''), case part[1] when '0' then false end);
  end if;
  return found;
end $$;

-- hapi_version writes a version's row, and again for what is known later.
create function hapi_version(r hfj_resource, body text, encoding text) returns void language plpgsql as $$
declare
  v bigint := nextval('hapi_numbers');
begin
  insert into hfj_res_ver (pid, res_id, res_ver, res_type, res_encoding, res_text_vc, has_tags, res_version, res_published, res_updated, res_deleted_at)
  values (v, r.res_id, r.res_ver, r.res_type, encoding, body, r.has_tags, 'R4', r.res_published, r.res_updated, r.res_deleted_at);
  if encoding <> 'DEL' then
    insert into hfj_history_tag select nextval('hapi_numbers'), tag_id, v, res_id, res_type from hfj_res_tag t where t.res_id = r.res_id;
  end if;
  update hfj_res_ver set source_uri = 'http://hapi.example/a', request_id = substr(md5(v::text), 1, 16) where pid = v;
end $$;

create function hapi_put(typ text, id text, body jsonb, tags text[] default '{}') returns void language plpgsql as $$
declare
  r hfj_resource;
  new boolean;
begin
  select * into r from hfj_resource where res_type = typ and fhir_id = id for update;
  new := not found;
  r.res_updated := date_trunc('milliseconds', clock_timestamp() at time zone 'UTC');
  if new then
    r.res_id := nextval('hapi_numbers');
    r.res_type := typ;
    r.fhir_id := id;
    r.res_ver := 0;
    r.has_tags := false;
    r.res_version := 'R4';
    r.res_published := r.res_updated;
  end if;
  r.res_ver := r.res_ver + 1;
  r.res_deleted_at := null;
  r.has_tags := r.has_tags or tags <> '{}';
  if new then
    insert into hfj_resource select r.*;
  end if;
  insert into hfj_res_tag
    select nextval('hapi_numbers'), d, r.res_id, typ from unnest(tags) with ordinality t (tag, n), lateral hapi_tag_def(tag) d
    where not exists (select from hfj_res_tag h where h.res_id = r.res_id and h.tag_id = d) order by n;
  perform hapi_version(r, (body - 'id' - 'meta')::text, 'JSON');
  if not new then
    update hfj_resource set res_ver = r.res_ver, res_updated = r.res_updated, res_deleted_at = null, has_tags = r.has_tags where res_id = r.res_id;
  end if;
end $$;

create function hapi_delete(typ text, id text) returns void language plpgsql as $$
declare
  r hfj_resource;
begin
  select * into strict r from hfj_resource where res_type = typ and fhir_id = id for update;
  r.res_ver := r.res_ver + 1;
  r.res_updated := date_trunc('milliseconds', clock_timestamp() at time zone 'UTC');
  r.res_deleted_at := r.res_updated;
  perform hapi_version(r, null, 'DEL');
  update hfj_resource set res_ver = r.res_ver, res_updated = r.res_updated, res_deleted_at = r.res_deleted_at where res_id = r.res_id;
end $$;

-- $meta-add and $meta-delete: other content, the same version.
create function hapi_meta(typ text, id text, tag text, add boolean) returns void language plpgsql as $$
declare
  r hfj_resource;
  v bigint;
  d bigint := hapi_tag_def(tag);
begin
  select * into strict r from hfj_resource where res_type = typ and fhir_id = id for update;
  select pid into strict v from hfj_res_ver h where h.res_id = r.res_id and h.res_ver = r.res_ver;
  if add then
    insert into hfj_res_tag values (nextval('hapi_numbers'), d, r.res_id, typ);
    insert into hfj_history_tag values (nextval('hapi_numbers'), d, v, r.res_id, typ);
  else
    delete from hfj_res_tag t where t.res_id = r.res_id and t.tag_id = d;
    delete from hfj_history_tag t where t.res_ver_pid = v and t.tag_id = d;
  end if;
  update hfj_res_ver set has_tags = exists (select from hfj_res_tag t where t.res_id = r.res_id) where pid = v;
  update hfj_resource set has_tags = exists (select from hfj_res_tag t where t.res_id = r.res_id), hash_sha256 = md5(clock_timestamp()::text) where res_id = r.res_id;
end $$;

-- $expunge: nothing is left of it.
create function hapi_expunge(typ text, id text) returns void language plpgsql as $$
declare
  n bigint;
begin
  select res_id into strict n from hfj_resource where res_type = typ and fhir_id = id for update;
  delete from hfj_history_tag where res_id = n;
  delete from hfj_res_tag where res_id = n;
  delete from hfj_res_ver where res_id = n;
  delete from hfj_resource where res_id = n;
end $$;

-- Medplum: a table a type, and one of its versions.

create table "Patient" (
  id uuid primary key, content text not null, "lastUpdated" timestamptz not null, deleted boolean not null default false,
  "projectId" uuid, compartments uuid[], birthdate date
);
create table "Observation" (like "Patient" including all);
alter table "Patient" alter content set storage external;
create table "Patient_History" ("versionId" uuid primary key, id uuid not null, content text not null, "lastUpdated" timestamptz not null);

-- The instant is that of when it is its turn, so that it does not fall along the log; one that is given may.
create function medplum_turn(typ text, id uuid, at timestamptz) returns timestamptz language sql as $$
  select pg_advisory_xact_lock(hashtext(typ || id));
  select coalesce(at, date_trunc('milliseconds', clock_timestamp()));
$$;

create function medplum_put(typ text, id uuid, body jsonb, given timestamptz default null) returns void language plpgsql as $$
declare
  at timestamptz := medplum_turn(typ, id, given);
  version uuid := gen_random_uuid();
  content text := body || jsonb_build_object('resourceType', typ, 'id', id, 'meta', jsonb_build_object(
    'versionId', version, 'lastUpdated', to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'project', '5b1e2f3a-0000-4000-8000-000000000001', 'author', jsonb_build_object('reference', 'Practitioner/9'),
    'profile', jsonb_build_array('http://example.org/' || typ)));
begin
  execute format('insert into %I as t (id, content, "lastUpdated", compartments) values ($1, $2, $3, array[$1])
    on conflict (id) do update set content = $2, "lastUpdated" = $3, deleted = false', typ) using id, content, at;
  if to_regclass(format('%I', typ || '_History')) is not null then
    execute format('insert into %I values ($1, $2, $3, $4)', typ || '_History') using version, id, content, at;
  end if;
end $$;

create function medplum_delete(typ text, id uuid, given timestamptz default null) returns void language plpgsql as $$
declare
  at timestamptz := medplum_turn(typ, id, given);
begin
  execute format('update %I set content = '''', "lastUpdated" = $2, deleted = true where id = $1', typ) using id, at;
  if to_regclass(format('%I', typ || '_History')) is not null then
    execute format('insert into %I values (gen_random_uuid(), $1, '''', $2)', typ || '_History') using id, at;
  end if;
end $$;

create function medplum_expunge(typ text, id uuid) returns void language plpgsql as $$
begin
  execute format('delete from %I where id = $1', typ) using id;
  execute 'delete from "Patient_History" h where h.id = $1' using id;
end $$;

-- A table of one's own, whose times are of a clock on a wall in Berlin.

create table fhir_documents (
  resource_type text, resource_id text, version bigint not null, changed_at timestamp not null, document jsonb, is_deleted boolean not null default false,
  note text, primary key (resource_type, resource_id)
);
alter table fhir_documents alter document set storage external;

create function document_put(typ text, id text, body jsonb) returns void language sql as $$
  insert into fhir_documents values (typ, id, 1, clock_timestamp() at time zone 'Europe/Berlin', body)
  on conflict (resource_type, resource_id) do update
    set version = fhir_documents.version + 1, changed_at = excluded.changed_at, document = excluded.document, is_deleted = false;
$$;

create function document_delete(typ text, id text) returns void language sql as $$
  update fhir_documents set version = version + 1, changed_at = clock_timestamp() at time zone 'Europe/Berlin', is_deleted = true
  where resource_type = typ and resource_id = id;
$$;

-- An outbox, which is written beside whatever tables there are.

create table outbox (
  id uuid primary key default gen_random_uuid(), seq bigint generated always as identity, aggregatetype text not null, aggregateid text not null, type text not null,
  payload jsonb, version bigint, last_updated text
);

create function outbox_put(typ text, id text, body jsonb) returns void language sql as $$
  insert into outbox (aggregatetype, aggregateid, type, payload, version, last_updated)
  values (typ, id, typ || 'Updated', body || jsonb_build_object('resourceType', typ, 'id', id),
    (select count(*) + 1 from outbox o where o.aggregatetype = typ and o.aggregateid = $2),
    to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'));
$$;

create function outbox_delete(typ text, id text) returns void language sql as $$
  insert into outbox (aggregatetype, aggregateid, type, version, last_updated)
  values (typ, id, typ || 'Deleted', (select count(*) + 1 from outbox o where o.aggregatetype = typ and o.aggregateid = $2),
    to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'));
$$;

-- Where Debezium is told to take a snapshot.
create table debezium_signal (id text primary key, type text not null, data text);
