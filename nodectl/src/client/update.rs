//! Updates.

use std::time::{Duration, Instant};

use ring_proto::{
    control::{Answer, Command, FailureKind, STAGE_BYTES, Updated},
    hypercall::Trial,
};

use super::{Client, PATIENCE, PAUSE, name};
use crate::{Error, image::ImageFile};

/// What a trial may take: the new image's start, the old one's last work, and the trial itself.
const TRIAL: Duration = Duration::from_secs(60);

impl Client {
    /// Sends a domain a new image and has it tried; tells `progress` how many
    /// bytes are there. Returns what came of it, and what the domain's image was.
    ///
    /// A supervisor that restarts meanwhile costs nothing: the hypervisor keeps
    /// what was sent, and brings the trial to its end with the next one.
    pub fn update(
        &mut self,
        domain: &str,
        image: &ImageFile,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(u32, Updated), Error> {
        let before = self.domain(domain)?;
        let room = before.as_ref().map_or(0, |status| status.update_space);
        if room > 0 && image.memory_len > room {
            return Err(Error::ImageTooLarge { takes: image.memory_len, room });
        }
        let old = before.map_or(0, |status| status.good_crc);
        let mut offset = 0;
        while offset < image.bytes.len() {
            offset = self.stage(domain, image, offset)?;
            progress(offset);
        }
        Ok((old, self.try_image(domain, image.crc)?))
    }

    /// Has the image that was sent tried: the one with this [`ImageFile::crc`].
    /// Returns what came of it.
    pub fn try_image(&mut self, domain: &str, crc: u32) -> Result<Updated, Error> {
        let deadline = Instant::now() + TRIAL;
        match self.ask(&Command::Update { domain: name(domain)? }, deadline) {
            Ok(Answer::Updated(updated)) => Ok(updated),
            Ok(_) => Err(Error::Unexpected("about an update")),
            Err(Error::SupervisorRestarted) => self.follow_trial(domain, crc, deadline),
            Err(why) => Err(why),
        }
    }

    /// Sends the part of an image's file at `offset`, until it is there: a part
    /// may come twice. Returns where the next one begins. What has been sent is
    /// nothing to the domain before an update is ordered, and a part at 0 begins
    /// anew.
    pub fn stage(
        &mut self,
        domain: &str,
        image: &ImageFile,
        offset: usize,
    ) -> Result<usize, Error> {
        let rest = image.bytes.get(offset..).unwrap_or_default();
        let part = rest.get(..STAGE_BYTES).unwrap_or(rest);
        let bytes = heapless::Vec::from_slice(part).unwrap_or_default();
        let at = u32::try_from(offset).map_err(|_| Error::Unexpected("possible"))?;
        let command = Command::Stage { domain: name(domain)?, offset: at, bytes };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.query(&command) {
                Ok(Answer::Done) => return Ok(offset.saturating_add(part.len())),
                Ok(_) => return Err(Error::Unexpected("about an update")),
                // Its place is still in use, for a moment.
                Err(Error::Refused(failure))
                    if failure.kind == FailureKind::Busy && Instant::now() < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// Has the image that was sent tried and does not wait for anything: what
    /// becomes of it shows in the list of domains.
    pub fn order_update(&mut self, domain: &str) -> Result<(), Error> {
        let command = Command::Update { domain: name(domain)? };
        self.send(&command, Instant::now() + PATIENCE).map(drop)
    }

    /// The supervisor that was asked is gone; the next one brings the trial to
    /// its end without being asked.
    fn follow_trial(
        &mut self,
        domain: &str,
        crc: u32,
        deadline: Instant,
    ) -> Result<Updated, Error> {
        while Instant::now() < deadline {
            let status = self.domain(domain)?.ok_or(Error::Unexpected("about this domain"))?;
            if Trial::from_raw(status.trial) == Some(Trial::None) {
                let kept = status.good_crc == crc;
                let why = if kept { "" } else { "its trial ended while the supervisor restarted" };
                let why = why.try_into().unwrap_or_default();
                let (domain, image_crc) = (status.name, status.good_crc);
                return Ok(Updated { domain, kept, image_crc, why, record: None });
            }
            std::thread::sleep(PAUSE);
        }
        Err(Error::NoAnswer(TRIAL))
    }
}
