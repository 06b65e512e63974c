package hello;

import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;

/** Answers GET / with one line of text. */
@RestController
class GreetingController {

    @GetMapping("/")
    String greet() {
        return "Greetings from Spring Boot!";
    }
}
