package hello;

import java.util.concurrent.atomic.AtomicBoolean;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;

/**
 * Answers GET /before-checkpoint, which config.yaml has called last before the dump: what the start left as garbage is
 * collected and its memory given back, so that it is neither kept in the checkpoint nor copied by each restore.
 */
@RestController
class CheckpointController {
    private final AtomicBoolean collected = new AtomicBoolean();

    @GetMapping("/before-checkpoint")
    String collect() {
        // Once only: whoever calls it later, from outside, must not cost anything.
        if (collected.compareAndSet(false, true)) {
            System.gc();
        }
        return "ready";
    }
}
