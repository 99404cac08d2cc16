-- What the tables say that there is: a row for each resource, whose mark differs with
-- each change, and whose resource is null where it is deleted. It is what exports are
-- compared with, and so says in SQL what the decoders say in Go.

create function utc(at timestamp) returns text language sql as $$
  select to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');
$$;

create view truth (key, mark, resource) as
  select r.res_type || '/' || r.fhir_id, concat(r.res_ver, m.meta), case when v.res_encoding <> 'DEL' then
    v.res_text_vc::jsonb || jsonb_build_object('id', r.fhir_id, 'meta', m.meta || jsonb_strip_nulls(jsonb_build_object(
      'versionId', r.res_ver::text, 'lastUpdated', utc(v.res_updated), 'source', v.source_uri || '#' || v.request_id))) end
  from hfj_resource r
  join hfj_res_ver v on v.res_id = r.res_id and v.res_ver = r.res_ver
  cross join lateral (
    select jsonb_strip_nulls(jsonb_build_object(
      'tag', jsonb_agg(c order by t.pid) filter (where d.tag_type = 0),
      'profile', jsonb_agg(to_jsonb(d.tag_code) order by t.pid) filter (where d.tag_type = 1),
      'security', jsonb_agg(c order by t.pid) filter (where d.tag_type = 2))) meta
    from hfj_res_tag t
    join hfj_tag_def d using (tag_id)
    cross join lateral jsonb_strip_nulls(jsonb_build_object('system', d.tag_system, 'code', d.tag_code, 'display', d.tag_display, 'userSelected', d.tag_user_selected)) c
    where t.res_id = r.res_id
  ) m
union all
  select typ || '/' || id, "lastUpdated"::text, case when not deleted then
    jsonb_set(content::jsonb, '{meta}', content::jsonb -> 'meta' #- '{project}' #- '{author}') end
  from (
    select 'Patient' typ, id, content, "lastUpdated", deleted from "Patient"
    union all
    select 'Observation', id, content, "lastUpdated", deleted from "Observation"
  ) medplum
union all
  select resource_type || '/' || resource_id, concat(version, changed_at), case when not is_deleted then
    document || jsonb_build_object('resourceType', resource_type, 'id', resource_id, 'meta', jsonb_build_object(
      'versionId', version::text, 'lastUpdated', utc(changed_at at time zone 'Europe/Berlin' at time zone 'UTC'))) end
  from fhir_documents
union all
  select key, seq::text, payload || jsonb_build_object('meta', jsonb_build_object('versionId', version::text, 'lastUpdated', last_updated))
  from (
    select distinct on (key) aggregatetype || '/' || aggregateid key, seq, payload, version, last_updated from outbox order by key, seq desc
  ) newest;

-- What random transactions do to HAPI's tables, in the order of what they do it to.
create function hapi(typ text, id text, what text, body jsonb default null, tags text[] default '{}') returns void language plpgsql as $$
begin
  case what
    when 'put' then perform hapi_put(typ, id, body, tags);
    when 'delete' then perform hapi_delete(typ, id);
    when 'expunge' then perform hapi_expunge(typ, id);
    when 'label' then perform hapi_meta(typ, id, '2|urn:labels|R|', true);
    when 'unlabel' then perform hapi_meta(typ, id, '2|urn:labels|R|', false);
  end case;
end $$;
