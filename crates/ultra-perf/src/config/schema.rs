//! The JSON Schema of a configuration file, made from the keys.

use serde_json::{Value, json};

use super::{
    backend::{self, Backends},
    reference::joined,
    setting::Raw,
    tree::{self, ANY, CACHES, CACHES_MAX, CacheSettings, DefaultValue, Key},
};

/// Makes the JSON Schema (draft 2020-12) of a configuration file.
///
/// Editors complete and check a file by it. It knows the form of each value alone: the bounds of times
/// and of sizes that are texts stand in the descriptions, and what must hold between two keys only
/// [`ConfigLoader::load`](super::ConfigLoader::load) tells.
#[must_use]
pub fn schema() -> Value {
    let mut root = table("What a configuration of ultra-perf can hold.");
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("ultra-perf.toml");
    for section in tree::SECTIONS.iter().filter(|section| !section.name.contains(ANY)) {
        let mut at = &mut root;
        for part in section.name.split('.').filter(|part| !part.is_empty()) {
            at = members(at).entry(part).or_insert_with(|| table(""));
        }
        if !section.name.is_empty() {
            at["description"] = json!(joined(section.doc));
        }
        for key in section.keys {
            members(at).insert(key.name().to_owned(), of_key(key));
        }
    }
    let mut cache = table(&joined(CacheSettings::SECTION.doc));
    for key in CacheSettings::KEYS {
        members(&mut cache).insert(key.name().to_owned(), of_key(key));
    }
    let caches = json!({
        "type": "object",
        "description": "Single caches by their names.",
        "maxProperties": CACHES_MAX,
        "propertyNames": { "pattern": "^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*$", "maxLength": 64 },
        "additionalProperties": cache,
    });
    members(&mut root).insert(CACHES.to_owned(), caches);
    members(&mut root).insert("backend".to_owned(), backends());
    root
}

/// A table without members.
fn table(doc: &str) -> Value {
    json!({
        "type": "object",
        "description": doc,
        "properties": {},
        "additionalProperties": false,
    })
}

fn members(table: &mut Value) -> &mut serde_json::Map<String, Value> {
    table["properties"].as_object_mut().expect("a table has properties")
}

fn of_key(key: &Key) -> Value {
    let mut schema = (key.schema)(key.least, key.most);
    let bounds = key.bounds();
    let bounds = if bounds.is_empty() { bounds } else { format!(" It is{}.", &bounds[1..]) };
    schema["description"] = json!(format!("{}{bounds}", joined(key.doc)));
    if let DefaultValue::Fixed(text) = key.default {
        schema["default"] = (key.json)(&Raw::Text(text.to_owned()));
    }
    if !key.path.contains(ANY) {
        schema["x-environment"] = json!(tree::env_name(key.path));
    }
    schema["x-effect"] = json!(key.effect);
    schema
}

/// The tables `[[backend]]`, which are another form of `server.to`.
fn backends() -> Value {
    let number = |least: u32, most: u32, doc: &str| json!({ "type": "integer", "minimum": least, "maximum": most, "description": doc });
    let mut one = table("A backend.");
    one["required"] = json!(["url"]);
    one["properties"] = json!({
        "url": { "type": "string", "pattern": "^\\s*[Hh][Tt][Tt][Pp]://", "description": "Where it is." },
        "weight": number(0, backend::WEIGHT_MAX, "Its share of the traffic against the others'."),
        "max_in_flight":
            number(1, backend::MAX_IN_FLIGHT_MAX, "Most requests that it gets at a time."),
        "priority": number(0, backend::PRIORITY_MAX, "Lowest first."),
        "zone": { "type": "string", "description": "Zone that it is in." },
    });
    json!({
        "type": "array",
        "description": "The backends, as another form of server.to.",
        "minItems": 1,
        "maxItems": Backends::MAX,
        "items": one,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            reference::EXAMPLE,
            tests::{check_page, loader},
        },
        *,
    };

    /// Whether `value` is as `schema` says, for the words that the schema of the keys uses.
    fn is_valid(value: &Value, schema: &Value) -> bool {
        let holds = |(word, rule): (&String, &Value)| match word.as_str() {
            "type" => match rule.as_str().expect("one type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                "number" => value.is_number(),
                other => panic!("no rule for the type {other}"),
            },
            "enum" => rule.as_array().expect("a list").contains(value),
            "anyOf" => rule.as_array().expect("a list").iter().any(|rule| is_valid(value, rule)),
            "pattern" => value.as_str().is_none_or(|text| {
                regex::Regex::new(rule.as_str().expect("a text")).expect("a pattern").is_match(text)
            }),
            "maxLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().expect("a number")),
            "minimum" => value.as_f64().is_none_or(|it| it >= rule.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|it| it <= rule.as_f64().expect("a number")),
            "minItems" => {
                value.as_array().is_none_or(|it| it.len() as u64 >= rule.as_u64().unwrap())
            }
            "maxItems" => {
                value.as_array().is_none_or(|it| it.len() as u64 <= rule.as_u64().unwrap())
            }
            "maxProperties" => {
                value.as_object().is_none_or(|it| it.len() as u64 <= rule.as_u64().unwrap())
            }
            "uniqueItems" => value
                .as_array()
                .is_none_or(|it| it.iter().enumerate().all(|(at, one)| !it[..at].contains(one))),
            "items" => value.as_array().is_none_or(|it| it.iter().all(|it| is_valid(it, rule))),
            "required" => value.as_object().is_none_or(|it| {
                rule.as_array().unwrap().iter().all(|name| it.contains_key(name.as_str().unwrap()))
            }),
            "propertyNames" => value
                .as_object()
                .is_none_or(|it| it.keys().all(|name| is_valid(&json!(name), rule))),
            "properties" => value.as_object().is_none_or(|members| {
                members.iter().all(|(name, value)| {
                    rule.get(name).is_none_or(|schema| is_valid(value, schema))
                })
            }),
            "additionalProperties" => value.as_object().is_none_or(|members| {
                let known = schema.get("properties");
                members
                    .iter()
                    .filter(|(name, _)| known.is_none_or(|known| known.get(name).is_none()))
                    .all(|(_, value)| rule != &json!(false) && is_valid(value, rule))
            }),
            "$schema" | "title" | "description" | "default" => true,
            word if word.starts_with("x-") => true,
            other => panic!("no rule for {other}"),
        };
        schema.as_object().expect("a schema is an object").iter().all(holds)
    }

    fn of_toml(text: &str) -> Value {
        serde_json::to_value(toml::from_str::<toml::Table>(text).expect("TOML")).expect("JSON")
    }

    #[test]
    fn the_documented_schema_is_the_generated_one() {
        check_page("ultra-perf.schema.json", &format!("{:#}\n", schema()));
    }

    #[test]
    fn the_example_is_valid() {
        assert!(is_valid(&of_toml(EXAMPLE), &schema()));
        assert!(is_valid(&json!({}), &schema()));
    }

    #[test]
    fn what_does_not_load_because_of_one_value_is_mostly_not_valid_and_what_loads_is() {
        let schema = schema();
        for (text, loads) in [
            ("cache.ttl = '10m'", true),
            ("cache.ttl = '1h 30m'", true),
            ("cache.ttl = 60", false),
            ("cache.ttl = 'soon'", false),
            ("cache.tll = '10m'", false),
            ("cache.memory.capacity = 1048576", true),
            ("cache.memory.capacity = '1.5 mib'", true),
            ("cache.memory.capacity = 1", false),
            ("cache.memory.capacity = '64M'", false),
            ("cache.memory.entries = 'none'", true),
            ("cache.memory.entries = 0", false),
            ("cache.early_refresh = 1", true),
            ("cache.early_refresh = 0.5", true),
            ("cache.early_refresh = -0.5", false),
            ("cache.order = ['disk', 'redis']", true),
            ("cache.order = ['disk', 'disk']", false),
            ("cache.order = ['disk']", false),
            ("cache.disk.fsync = '1s'", true),
            ("cache.disk.fsync = 'often'", false),
            ("cache.redis.url = 'rediss-cluster://h'", true),
            ("cache.redis.url = 'http://h'", false),
            ("cache.encryption.keys = []", false),
            ("balancer.hedge = 0.95", true),
            ("balancer.hedge = '95%'", true),
            ("balancer.hedge = 0.2", false),
            ("balancer.sticky_key = 'hunter2'", false),
            ("server.compression = true", true),
            ("server.compression = 'true'", false),
            ("server.metrics_listen = '[::1]:8000'", true),
            ("server.metrics_listen = 'localhost'", false),
            ("server.to = ['http://a', 'http://b,weight=2']", true),
            ("server.to = 'gopher://a'", false),
            ("level = 'extreme'", true),
            ("level = 3", false),
            ("[caches.users]\nttl = '1m'\nprefetch = 'none'", true),
            ("[caches.users]\ntll = '1m'", false),
            ("[caches.'a b']\nttl = '1m'", false),
            ("[caches.'shop.users.load']\nttl = '1m'", true),
            ("[caches.'shop..load']\nttl = '1m'", false),
            ("[caches.'shop.']\nttl = '1m'", false),
            ("[caches.shop.users]\nttl = '1m'", false),
            (format!("[caches.{}]\nttl = '1m'", "a".repeat(64)).as_str(), true),
            (format!("[caches.{}]\nttl = '1m'", "a".repeat(65)).as_str(), false),
            ("[[backend]]\nurl = 'http://a'\nweight = 2", true),
            ("[[backend]]\nweight = 2", false),
            ("[[backend]]\nurl = 'http://a'\nwait = 2", false),
            ("backend = []", false),
            ("log.level = 'info,a=debug'", true),
        ] {
            assert_eq!(is_valid(&of_toml(text), &schema), loads, "{text}");
            assert_eq!(loader().toml("f", text).load().is_ok(), loads, "{text}");
        }
    }

    #[test]
    fn every_key_is_in_it_with_its_default() {
        let schema = schema();
        for key in tree::fixed_keys() {
            let path = key.path.replace('.', "/properties/");
            let found = schema.pointer(&format!("/properties/{path}")).expect(key.path);
            assert!(
                found["description"].as_str().is_some_and(|doc| doc.len() > 10),
                "{}",
                key.path
            );
            if let Some(default) = found.get("default") {
                assert!(is_valid(default, found), "{} = {default}", key.path);
            }
        }
        let count = schema.to_string().matches("x-effect").count();
        assert_eq!(count, tree::keys().count());
    }
}
