//! The component in a real host: builds it and tries whether it keeps to the contract.

use keepwell_sdk::testing::Component;

#[test]
fn it_keeps_to_the_contract() {
    Component::build(env!("CARGO_MANIFEST_DIR")).assert_conforms();
}
