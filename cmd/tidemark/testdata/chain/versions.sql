-- Two tables of versions without numbers, behind tables.sql: one of Medplum's shape beside
-- its table of what is now, and one of one's own, alone. Times do not fall along the log,
-- nor stand still; the order of a resource's rows is that of seq.

create table "Practitioner" (like "Patient" including all);
create table "Practitioner_History" (
  "versionId" uuid primary key, id uuid not null, content text not null, "lastUpdated" timestamptz not null,
  seq bigserial, edited boolean not null default false, touched boolean not null default false
);
create table versions (
  row_id uuid primary key default gen_random_uuid(), resource_type text not null, resource_id text not null, changed_at timestamptz not null, document jsonb,
  is_deleted boolean not null default false, seq bigserial, edited boolean not null default false, touched boolean not null default false
);

-- A resource's turn, and the time of its next version.
create function practitioner_turn(n text) returns timestamptz language plpgsql as $$
begin
  perform medplum_turn('Practitioner', md5(n)::uuid, null);
  return (select greatest(date_trunc('milliseconds', clock_timestamp()), max("lastUpdated") + interval '1 ms') from "Practitioner_History" where id = md5(n)::uuid);
end $$;

create function practitioner_put(n text, mark text) returns void language sql as $$
  select medplum_put('Practitioner', md5(n)::uuid, jsonb_build_object('language', mark), practitioner_turn(n));
$$;

create function practitioner_delete(n text) returns void language plpgsql as $$
declare
  at timestamptz := practitioner_turn(n);
begin
  if exists (select from "Practitioner" where id = md5(n)::uuid and not deleted) then
    perform medplum_delete('Practitioner', md5(n)::uuid, at);
  end if;
end $$;

-- edit writes a version's row again, once for each: the newest, one before it (back), and with
-- another body or as it is. The newest stands in two tables, in this order or in that.
create function practitioner_edit(n text, back int, other boolean, now_first boolean) returns void language plpgsql as $$
declare
  h "Practitioner_History";
  body text;
begin
  perform practitioner_turn(n);
  select * into h from "Practitioner_History" where id = md5(n)::uuid order by seq desc offset back limit 1;
  if not found or h.touched then return; end if;
  body := case when other and h.content <> '' then (h.content::jsonb || '{"gender": "other"}')::text else h.content end;
  if back = 0 and now_first then update "Practitioner" set content = body where id = h.id; end if;
  update "Practitioner_History" set content = body, edited = body <> h.content, touched = true where "versionId" = h."versionId";
  if back = 0 and not now_first then update "Practitioner" set content = body where id = h.id; end if;
end $$;

create function version_turn(n text) returns timestamptz language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtext('version' || n));
  return (select greatest(date_trunc('milliseconds', clock_timestamp()), max(changed_at) + interval '1 ms') from versions where resource_id = n);
end $$;

create function version_put(n text, mark text) returns void language sql as $$
  insert into versions (resource_type, resource_id, changed_at, document) values ('Condition', n, version_turn(n),
    jsonb_build_object('resourceType', 'Condition', 'id', n, 'meta', jsonb_build_object('versionId', gen_random_uuid()), 'language', mark));
$$;

create function version_delete(n text) returns void language plpgsql as $$
declare
  at timestamptz := version_turn(n);
begin
  if (select not is_deleted from versions where resource_id = n order by seq desc limit 1) then
    insert into versions (resource_type, resource_id, changed_at, is_deleted) values ('Condition', n, at, true);
  end if;
end $$;

create function version_edit(n text, back int, other boolean) returns void language plpgsql as $$
declare
  h versions;
begin
  perform version_turn(n);
  select * into h from versions where resource_id = n order by seq desc offset back limit 1;
  if not found or h.touched then return; end if;
  update versions set document = case when other then document || '{"language": "other"}' else document end, edited = other and not is_deleted, touched = true where row_id = h.row_id;
end $$;

create view newest_versions (key, mark, resource) as
  select 'Practitioner/' || id, concat(seq, edited), case when content <> '' then
    jsonb_set(content::jsonb, '{meta}', content::jsonb -> 'meta' #- '{project}' #- '{author}') end
  from (select distinct on (id) * from "Practitioner_History" order by id, seq desc) newest
union all
  select 'Condition/' || resource_id, concat(seq, edited), case when not is_deleted then
    jsonb_set(document, '{meta,lastUpdated}', to_jsonb(utc(changed_at at time zone 'UTC'))) end
  from (select distinct on (resource_id) * from versions order by resource_id, seq desc) newest;
