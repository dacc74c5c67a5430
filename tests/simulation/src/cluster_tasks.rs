//! What a simulated broker does in several steps with waiting in between: futures, run in one thread in the order in which they
//! become ready.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Ready = Arc<Mutex<VecDeque<usize>>>;

#[derive(Default)]
pub struct Tasks {
    slots: RefCell<Vec<Option<Task>>>,
    free: RefCell<Vec<usize>>,
    ready: Ready,
    /// The process is gone: nothing runs any more.
    ended: Cell<bool>,
}

struct WakeTask {
    slot: usize,
    ready: Ready,
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.ready.lock().push_back(self.slot);
    }
}

impl Tasks {
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.ended.get() {
            return;
        }
        let task: Task = Box::pin(task);
        let slot = self.free.borrow_mut().pop();
        let slot = match slot {
            Some(slot) => {
                self.slots.borrow_mut()[slot] = Some(task);
                slot
            }
            None => {
                self.slots.borrow_mut().push(Some(task));
                self.slots.borrow().len() - 1
            }
        };
        self.ready.lock().push_back(slot);
    }

    /// Runs whatever is ready; whether anything was.
    pub fn run(&self) -> bool {
        let mut ran = false;
        loop {
            let Some(slot) = self.ready.lock().pop_front() else { return ran };
            // One that ended may have been woken before.
            let Some(mut task) = self.slots.borrow_mut()[slot].take() else { continue };
            ran = true;
            let waker = Waker::from(Arc::new(WakeTask { slot, ready: self.ready.clone() }));
            match task.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => self.slots.borrow_mut()[slot] = Some(task),
                Poll::Ready(()) => self.free.borrow_mut().push(slot),
            }
        }
    }

    /// All of them end where they are.
    pub fn end(&self) {
        self.ended.set(true);
        let tasks = self.slots.take();
        self.ready.lock().clear();
        drop(tasks);
    }
}

struct Shared<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The end of something that a task waits for.
pub struct Resolver<T>(Rc<RefCell<Shared<T>>>);

pub struct Promise<T>(Rc<RefCell<Shared<T>>>);

pub fn promise<T>() -> (Resolver<T>, Promise<T>) {
    let shared = Rc::new(RefCell::new(Shared { value: None, waker: None }));
    (Resolver(shared.clone()), Promise(shared))
}

impl<T> Resolver<T> {
    pub fn resolve(self, value: T) {
        let mut shared = self.0.borrow_mut();
        shared.value = Some(value);
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Promise<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut shared = self.0.borrow_mut();
        match shared.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                shared.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The result of a future that waits for nothing.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("metadata in memory wait for nothing"),
    }
}
