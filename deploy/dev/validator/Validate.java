import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.validation.FhirValidator;
import ca.uhn.fhir.validation.SingleValidationMessage;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.hl7.fhir.common.hapi.validation.support.CommonCodeSystemsTerminologyService;
import org.hl7.fhir.common.hapi.validation.support.InMemoryTerminologyServerValidationSupport;
import org.hl7.fhir.common.hapi.validation.support.ValidationSupportChain;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;

import static java.nio.charset.StandardCharsets.UTF_8;

/**
 * Validates FHIR R4 resources. Standard input has one on each line; each is
 * answered, in the same order, by one line: a JSON list of its faults, each with
 * severity, location and message.
 *
 * Nothing is asked of the network: profiles and code systems that do not come
 * with R4 are unknown here, and what is said with them is a warning at most.
 */
public class Validate {
  public static void main(String[] args) {
    var validator = validator();
    var json = new ObjectMapper();
    var out = new PrintStream(System.out, true, UTF_8);
    System.setOut(System.err); // libraries that print shall not print into the answers
    new BufferedReader(new InputStreamReader(System.in, UTF_8)).lines().toList().parallelStream()
        .map(resource -> faults(validator, resource))
        .map(faults -> json.valueToTree(faults).toString())
        .forEachOrdered(out::println);
  }

  private static FhirValidator validator() {
    var context = FhirContext.forR4();
    var module = new FhirInstanceValidator(new ValidationSupportChain(
        new DefaultProfileValidationSupport(context),
        new InMemoryTerminologyServerValidationSupport(context),
        new CommonCodeSystemsTerminologyService(context)));
    module.setAnyExtensionsAllowed(true);
    module.setErrorForUnknownProfiles(false);
    return context.newValidator().registerValidatorModule(module);
  }

  private static List<Map<String, String>> faults(FhirValidator validator, String resource) {
    try {
      return validator.validateWithResult(resource).getMessages().stream().map(Validate::fault).toList();
    } catch (RuntimeException e) { // what is no JSON
      return List.of(fault("fatal", "", e.toString()));
    }
  }

  private static Map<String, String> fault(SingleValidationMessage m) {
    return fault(m.getSeverity().getCode(), Objects.toString(m.getLocationString(), ""), m.getMessage());
  }

  private static Map<String, String> fault(String severity, String location, String message) {
    return Map.of("severity", severity, "location", location, "message", message);
  }
}
