use novafed::protocol::trust::RegionCa;
use novafed::store::StoreKey;
use novafed::types::*;
fn main() {
    let root = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let names = ["eu", "us", "ap"];
    let fed: FederationName = "demo".parse().unwrap();
    let clock = { let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(); let _g = rt.enter(); novafed::clock::Clock::start() };
    for n in names {
        let dir = root.join(n);
        std::fs::create_dir_all(&dir).unwrap();
        let ca = RegionCa::create(&fed, &n.parse().unwrap(), clock.wall()).unwrap();
        ca.save(&dir).unwrap();
        ca.issue_leaf(clock.wall(), Millis(86_400_000)).unwrap().save(&dir.join("leaf.pem")).unwrap();
        StoreKey::generate().unwrap().save(&dir.join("store.key")).unwrap();
    }
    for (i, n) in names.iter().enumerate() {
        let mut t = format!("[region]\nname = \"{n}\"\nfederation = \"demo\"\nnumber = {}\n[listen]\naddress = \"127.0.0.1:{}\"\n", i + 1, 17443 + i);
        t += "[store]\nkey = { file = \"store.key\" }\n";
        for c in ["a", "b"] {
            t += &format!("[[cluster]]\nid = \"{n}-{c}\"\nhost = \"{n}-{c}\"\ndriver = \"embedded\"\ncapacity = {{ cpu = 64, memory = \"64 GiB\", disk = \"1 TiB\" }}\n");
        }
        for (j, p) in names.iter().enumerate() {
            if i != j { t += &format!("[[peer]]\nregion = \"{p}\"\nnumber = {}\naddress = \"127.0.0.1:{}\"\nca = \"../{p}/ca.pem\"\n", j + 1, 17443 + j); }
        }
        std::fs::write(root.join(n).join("node.toml"), t).unwrap();
    }
}
