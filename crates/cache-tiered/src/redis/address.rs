//! What a URL of the Redis tier says: servers, TLS, credentials and a database, alike for every client.

use std::fmt;

/// The port of a server that names none.
const SERVER_PORT: u16 = 6379;
/// The port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26379;

/// Where a Redis is and how to get in.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) kind: Kind,
    /// Host names and ports: of the server, or of nodes or sentinels to ask.
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<u8>,
}

/// What answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Cluster,
    /// Sentinels that know where the server of this name is.
    Sentinel {
        service: String,
    },
}

/// What a scheme stands for, and whether it asks for TLS.
const SCHEMES: [(&str, &str, bool); 12] = [
    ("redis", "redis", false),
    ("rediss", "redis", true),
    ("redis-cluster", "redis-cluster", false),
    ("rediss-cluster", "redis-cluster", true),
    ("redis-sentinel", "redis-sentinel", false),
    ("rediss-sentinel", "redis-sentinel", true),
    ("valkey", "redis", false),
    ("valkeys", "redis", true),
    ("valkey-cluster", "redis-cluster", false),
    ("valkeys-cluster", "redis-cluster", true),
    ("valkey-sentinel", "redis-sentinel", false),
    ("valkeys-sentinel", "redis-sentinel", true),
];

impl Address {
    /// Reads a URL, or says what would be right.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err("must begin with redis://, rediss:// or redis-cluster://".to_owned());
        };
        let Some((_, scheme, tls)) = SCHEMES.iter().find(|(name, ..)| *name == scheme) else {
            return Err("the scheme must be redis, rediss (TLS), redis-cluster, rediss-cluster, \
                        redis-sentinel or rediss-sentinel"
                .to_owned());
        };
        let (head, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (credentials, place) = match head.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, head),
        };
        let (user, password) = match credentials.map(|it| it.split_once(':').unwrap_or((it, ""))) {
            Some((user, password)) => (decoded(user)?, decoded(password)?),
            None => (None, None),
        };
        let (host, path) = place.split_once('/').unwrap_or((place, ""));
        let database =
            match path {
                "" => None,
                _ if *scheme == "redis-cluster" => {
                    return Err("a cluster has no numbered databases: drop the path".to_owned());
                }
                path => Some(path.parse().map_err(|_| {
                    "the path must be the number of a database, 0 to 255".to_owned()
                })?),
            };
        let port = if *scheme == "redis-sentinel" { SENTINEL_PORT } else { SERVER_PORT };
        let mut hosts = vec![host_and_port(host, port)?];
        let mut service = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (*scheme, name) {
                ("redis-cluster" | "redis-sentinel", "node") => {
                    hosts.push(host_and_port(value, port)?);
                }
                ("redis-sentinel", "sentinelServiceName") => service = decoded(value)?,
                ("redis-cluster", _) => {
                    return Err("a redis-cluster URL takes only node".to_owned());
                }
                ("redis-sentinel", _) => {
                    return Err(
                        "a redis-sentinel URL takes only node and sentinelServiceName".to_owned()
                    );
                }
                _ => return Err("a redis URL takes no parameters".to_owned()),
            }
        }
        let kind = match (*scheme, service) {
            ("redis-cluster", _) => Kind::Cluster,
            ("redis-sentinel", Some(service)) => Kind::Sentinel { service },
            ("redis-sentinel", None) => {
                return Err("the sentinel service name is missing: \
                            add ?sentinelServiceName=NAME"
                    .to_owned());
            }
            _ => Kind::Server,
        };
        Ok(Self { kind, hosts, tls: *tls, user, password, database })
    }

    /// The name that the nodes' certificates bear: a cluster tells its nodes as addresses, but their
    /// certificate is made out to the name in the URL, if there is one.
    pub(super) fn certificate_name(&self) -> Option<&str> {
        let is_name = |(host, _): &(String, u16)| host.parse::<std::net::IpAddr>().is_err();
        let named = self.kind == Kind::Cluster && self.hosts.iter().all(is_name);
        named.then(|| self.hosts[0].0.as_str())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("kind", &self.kind)
            .field("hosts", &self.hosts)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

fn host_and_port(text: &str, default: u16) -> Result<(String, u16), String> {
    // An IPv6 address stands in brackets, because of its colons; a resolver knows it without.
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None => return Err("the port must follow the bracket after a colon".to_owned()),
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    if host.chars().any(|c| c.is_whitespace() || c.is_control() || "[]%#\\".contains(c)) {
        return Err("the host must be a name or an address".to_owned());
    }
    let port = match port {
        None => default,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("the port must be a number, 1 to 65535")?,
    };
    Ok((host.to_owned(), port))
}

/// Undoes the percent encoding of a part; an empty one is none.
fn decoded(part: &str) -> Result<Option<String>, String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let byte = rest
            .split_at_checked(2)
            .filter(|(digits, _)| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|(digits, _)| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or("a % must be followed by two hexadecimal digits; % itself is %25")?;
        bytes.push(byte);
        rest = &rest[2..];
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| "what the percent encoding stands for must be UTF-8".to_owned())?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a URL means, in one line.
    fn told(url: &str) -> String {
        let address = match Address::parse(url) {
            Ok(address) => address,
            Err(expected) => return expected,
        };
        let kind = match &address.kind {
            Kind::Server => "server".to_owned(),
            Kind::Cluster => "cluster".to_owned(),
            Kind::Sentinel { service } => format!("sentinel of {service}"),
        };
        let hosts: Vec<_> =
            address.hosts.iter().map(|(host, port)| format!("{host} {port}")).collect();
        let tls = if address.tls { " tls" } else { "" };
        let credentials = match (address.user, address.password) {
            (None, None) => String::new(),
            (user, password) => {
                format!(" as {}/{}", user.unwrap_or_default(), password.unwrap_or_default())
            }
        };
        let database = address.database.map_or(String::new(), |it| format!(" db {it}"));
        format!("{kind}{tls} {}{database}{credentials}", hosts.join(", "))
    }

    #[test]
    fn a_url_names_servers_clusters_and_sentinels() {
        for (url, meaning) in [
            ("redis://localhost", "server localhost 6379"),
            ("valkey://localhost/", "server localhost 6379"),
            ("redis://u:p%40q@host:7000/3", "server host 7000 db 3 as u/p@q"),
            ("redis://:secret@host", "server host 6379 as /secret"),
            ("redis://:se@cr%2Fet@host", "server host 6379 as /se@cr/et"),
            ("rediss://[::1]:6380", "server tls ::1 6380"),
            ("rediss://[::1]", "server tls ::1 6379"),
            ("redis-cluster://a:1?node=b:2&node=c:3", "cluster a 1, b 2, c 3"),
            ("valkeys-cluster://a", "cluster tls a 6379"),
            ("redis-sentinel://a?sentinelServiceName=x", "sentinel of x a 26379"),
        ] {
            assert_eq!(told(url), meaning, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_told_what_would_be_right() {
        for (url, expected) in [
            ("localhost:6379", "must begin with redis://"),
            ("", "must begin with redis://"),
            ("http://localhost", "the scheme must be redis,"),
            ("redis://", "host"),
            ("redis://:6379", "host"),
            ("redis://a b", "the host must be a name"),
            ("redis://[::1]6379", "the port must follow"),
            ("redis://host:99999", "port"),
            ("redis://host:", "port"),
            ("redis://host:0", "port"),
            ("redis://:%zz@host", "a % must be followed by"),
            ("redis://:%+1@host", "a % must be followed by"),
            ("redis://:%ff@host", "must be UTF-8"),
            ("redis://host/users", "the path must be the number of a database"),
            ("redis://host/1/2", "the path must be the number of a database"),
            ("redis://host?timeout=1", "a redis URL takes no parameters"),
            ("redis-cluster://host/1", "a cluster has no numbered databases"),
            ("redis-cluster://host?nodes=a:1", "a redis-cluster URL takes only node"),
            ("redis-cluster://host?node=", "the host is missing"),
            ("redis-sentinel://host", "sentinel service name"),
        ] {
            let told = told(url);
            assert!(told.contains(expected), "{url}: {told}");
        }
    }

    #[test]
    fn the_certificate_of_a_cluster_bears_the_name_in_the_url() {
        for (url, name) in [
            ("rediss-cluster://a.example?node=b.example", Some("a.example")),
            ("rediss-cluster://10.0.0.1", None),
            ("rediss-cluster://a.example?node=10.0.0.1", None),
            ("rediss://a.example", None),
        ] {
            assert_eq!(Address::parse(url).unwrap().certificate_name(), name, "{url}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_understood_or_refused(text in "(redis(-cluster|-sentinel)?://)?[ -~é]{0,40}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert!(!address.hosts.is_empty());
                let told = format!("{address:?}");
                let secret = address.password.filter(|it| it.len() > 12);
                prop_assert!(secret.is_none_or(|secret| !told.contains(&secret)));
            }
        }

        #[test]
        fn every_password_gets_through_its_encoding(password in "\\PC{1,20}") {
            let encoded: String = password.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let address = Address::parse(&format!("redis://:{encoded}@host")).unwrap();
            prop_assert_eq!(address.password, Some(password));
        }
    }
}
