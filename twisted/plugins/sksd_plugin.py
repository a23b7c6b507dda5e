"""`twistd sksd`."""

from twisted.application.service import ServiceMaker

sksd = ServiceMaker("sksd", "sksd.server.tap", "The Spyder Kernel Spinner Daemon.", "sksd")
