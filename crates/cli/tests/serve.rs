//! The real binary, started as a user starts it, in front of a backend on a real socket.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use support::{Accelerator, Backend, PATIENCE, field, run, text};

#[test]
fn what_was_served_is_a_hit_after_a_kill_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start();
    let mut accelerator = Accelerator::start(directory.path(), &backend);
    assert_eq!(field(&accelerator.get("/page"), "x-cache"), Some("MISS"));
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        assert_eq!(field(&accelerator.get("/page"), "x-cache"), Some("HIT"));
        // The write to disk goes on behind the answer.
        let deadline = Instant::now() + PATIENCE;
        let on_disk = || {
            let stats = accelerator.admin_get("/cache/stats");
            stats["levels"]["l3"]["queue_depth"] == 0 && stats["levels"]["l3"]["entries"] == 1
        };
        while !on_disk() {
            assert!(Instant::now() < deadline, "the page never reached the disk");
        }
        accelerator.signal(signal);
        accelerator.wait();
        accelerator = Accelerator::start(directory.path(), &backend);
    }
    let answer = accelerator.get("/page");
    assert_eq!(field(&answer, "x-cache"), Some("HIT"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    assert_eq!(backend.calls(), 1);
}

#[test]
fn a_first_signal_lets_requests_end_and_a_second_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start();
    for signals in [1, 2] {
        let mut accelerator = Accelerator::start(directory.path(), &backend);
        let calls = backend.calls();
        let mut client = TcpStream::connect(&accelerator.proxy).unwrap();
        // One that is waited for, and one that never comes to its end.
        let path = if signals == 1 { "/slow" } else { "/slower" };
        let request = format!("POST {path} HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while backend.calls() == calls {
            assert!(Instant::now() < deadline, "the request never arrived");
            std::thread::yield_now();
        }
        accelerator.signal(libc::SIGTERM);
        if signals == 2 {
            // A second signal may come only once the first has been seen: then nobody is accepted.
            while TcpStream::connect(&accelerator.proxy).is_ok() {
                assert!(Instant::now() < deadline, "it goes on accepting");
            }
            accelerator.signal(libc::SIGTERM);
        }
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer);
        let status = accelerator.wait();
        if signals == 1 {
            assert!(answer.ends_with("hello"), "{answer:?} {read:?}");
            assert_eq!(status.code(), Some(0));
        } else {
            assert!(answer.is_empty(), "{answer:?}");
            assert_eq!(status.code(), Some(1));
        }
    }
}

#[test]
fn a_purged_url_is_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start();
    let accelerator = Accelerator::start(directory.path(), &backend);
    accelerator.get("/page");
    let purged =
        run(directory.path(), &["purge", "http://shop/page", "--admin", &accelerator.admin]);
    assert_eq!(text(&purged.stdout), "purged http://shop/page\n", "{purged:?}");
    assert_eq!(field(&accelerator.get("/page"), "x-cache"), Some("MISS"));
    let refused = run(directory.path(), &["purge", "page", "--admin", &accelerator.admin]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("url must be a whole URL"), "{refused:?}");
}

#[test]
fn purged_tags_are_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start();
    let accelerator = Accelerator::start(directory.path(), &backend);
    accelerator.get("/page");
    let purge = |args: &[&str]| {
        run(directory.path(), &[&["purge", "--admin", &accelerator.admin], args].concat())
    };
    let other = purge(&["--tag", "other", "--soft"]);
    assert_eq!(text(&other.stdout), "purged other softly\n", "{other:?}");
    assert_eq!(field(&accelerator.get("/page"), "x-cache"), Some("HIT"));
    let purged = purge(&["--tag", "pages", "--tag", "other"]);
    assert_eq!(text(&purged.stdout), "purged pages, other\n", "{purged:?}");
    assert_eq!(field(&accelerator.get("/page"), "x-cache"), Some("MISS"));
    for wrong in [&[][..], &["http://shop/page", "--tag", "a"], &["http://shop/page", "--soft"]] {
        assert_eq!(purge(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn several_backends_share_the_requests() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Backend::start(), Backend::start());
    let file = "response_cache.enabled = false\nbalancer.policy = 'round-robin'\n";
    std::fs::write(directory.path().join("ultra-perf.toml"), file).unwrap();
    let more = ["--to", &format!("http://{},weight=2,max=8", b.address)];
    let accelerator = Accelerator::start_with(directory.path(), &a, &more);
    for _ in 0..10 {
        assert!(accelerator.get("/").starts_with("HTTP/1.1 200 OK"));
    }
    assert_eq!((a.calls(), b.calls()), (5, 5));
    let twice = ["check", "--to", "http://a", "--to", "http://b,weight=x", "--to", "https://c"];
    let wrong = run(directory.path(), &twice);
    assert_eq!(wrong.status.code(), Some(2));
    for part in
        ["number 2: weight must be a whole number", "number 3: must be an http:// URL", "--to"]
    {
        assert!(text(&wrong.stderr).contains(part), "{part} in {wrong:?}");
    }
}

#[test]
fn a_second_instance_is_told_what_is_in_its_way() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start();
    let accelerator = Accelerator::start(directory.path(), &backend);
    let to = format!("http://{}", backend.address);
    let taken = run(directory.path(), &["serve", "--to", &to, "--listen", &accelerator.proxy]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(text(&taken.stderr).contains("server.listen"), "{taken:?}");
    let free = ["serve", "--to", &to, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let locked = run(directory.path(), &free);
    assert_eq!(locked.status.code(), Some(1));
    assert!(text(&locked.stderr).contains("cache.disk.path"), "{locked:?}");
}

#[test]
fn check_tells_values_origins_and_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ultra-perf.toml"), "[cache]\nttl = \"10m\"\n").unwrap();
    let good = run(directory.path(), &["check", "--to", "http://127.0.0.1:8000"]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let table = text(&good.stdout);
    let row = |key: &str| table.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    assert!(row("cache.ttl").contains("10m") && row("cache.ttl").contains("ultra-perf.toml:2"));
    assert!(row("server.to").contains("--to"));

    std::fs::write(directory.path().join("bad.toml"), "[cache]\nttl = 10\nspeed = \"much\"\n")
        .unwrap();
    for command in ["check", "serve"] {
        let bad = run(directory.path(), &[command, "--config", "bad.toml", "--listen", "nowhere"]);
        assert_eq!(bad.status.code(), Some(2));
        let problems = text(&bad.stderr);
        for part in ["cache.ttl", "bad.toml:2", "cache.speed", "server.listen", "--listen"] {
            assert!(problems.contains(part), "{command}: {part} in {problems}");
        }
    }
    let json = run(directory.path(), &["check", "--json", "--config", "bad.toml"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 2);
}
