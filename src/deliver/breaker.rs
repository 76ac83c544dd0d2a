use crate::clock::Timestamp;
#[derive(Default)]
pub struct Breaker;
#[derive(PartialEq, Eq)]
pub enum Change {
    None,
    Opened { until: Timestamp },
    Closed,
}
pub enum Gate {
    Open,
    Probe,
    Wait { until: Timestamp },
}
impl Breaker {
    pub fn success(&mut self) -> Change {
        todo!()
    }
    pub fn failure(&mut self, _: Timestamp) -> Change {
        todo!()
    }
    pub fn may_send(&mut self, _: Timestamp) -> Gate {
        todo!()
    }
    pub fn is_open(&self) -> bool {
        todo!()
    }
    pub fn failing_since(&self) -> Option<Timestamp> {
        todo!()
    }
}
pub fn should_disable(_: Option<Timestamp>, _: Timestamp) -> bool {
    todo!()
}
